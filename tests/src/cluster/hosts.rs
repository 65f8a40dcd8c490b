//! Hosts: network namespaces of a test's own on one switch, each with directories of its own, as if they were machines.
//!
//! Kernels and programs that are started on a host run in its namespace and see no other interface. What is local to a
//! host goes by files, so the test itself may use `dvm` and clients of any host from outside.

use super::ground::run;
use super::{Ground, Outcome, PATIENCE, built, has, root_for, wait_for};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::place::{DvmPlace, RuntimeDir};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::ops::Deref;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Hosts that see each other. Dropped, their processes are ended and their namespaces removed.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    /// Dropped last: processes go before their namespaces.
    _network: Network,
}

impl Deref for Hosts {
    type Target = [Host];

    fn deref(&self) -> &[Host] {
        &self.hosts
    }
}

impl Hosts {
    /// So many; nothing where this may not be done, or cannot, as [`root_for`] and [`has`] say.
    ///
    /// # Panics
    /// When the system refuses what root may do.
    #[must_use]
    pub fn new(count: usize, what: &str) -> Option<Self> {
        if !root_for(what) || !has(&["ip"], what) {
            return None;
        }
        let network = Network::new(count);
        let host = |number: usize| Host {
            ground: Ground::new(),
            namespace: network.namespace(number),
            address: address(number),
        };
        Some(Self { hosts: (0..count).map(host).collect(), _network: network })
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    ground: Ground,
    namespace: String,
    address: String,
}

impl Deref for Host {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        &self.ground
    }
}

impl Host {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A command that [`Ground::program`] began, to be run on this host.
    #[must_use]
    pub fn here(&self, command: &Command) -> Command {
        let mut inside = self.ground.program("ip");
        inside.args(["netns", "exec", &self.namespace]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Starts a DVM with this host's kernel as its first.
    ///
    /// # Panics
    /// When there is no room.
    #[must_use]
    pub fn found(&self, dvm: &str, member: &str, respawn: Option<(u32, u64)>) -> Outcome {
        self.kernel(dvm, member, &json!({"found": {"settings": []}}), respawn)
    }

    /// Starts a kernel that joins the DVM with a ticket of another host's.
    ///
    /// # Panics
    /// When it gives none.
    #[must_use]
    pub fn join(&self, other: &Host, dvm: &str, member: &str, respawn: Option<(u32, u64)>) -> Outcome {
        let ticket = other.json(&["ticket"]).exits(0).json()["ticket"].clone();
        self.kernel(dvm, member, &json!({"join": {"ticket": ticket}}), respawn)
    }

    fn kernel(&self, dvm: &str, member: &str, role: &Value, respawn: Option<(u32, u64)>) -> Outcome {
        let bootstrap = json!({
            "dvm": dvm, "member": member, "role": role, "tags": {}, "runtime_dir": self.runtime(),
            "log_dir": self.logs(), "listen": self.address, "respawn": respawn,
        });
        let file = self.home().join("bootstrap");
        fs::write(&file, format!("{bootstrap}\n")).expect("written");
        let mut kernel = self.program(built("dvm-kernel"));
        kernel.args(["--bootstrap", "-"]);
        let mut kernel = self.here(&kernel);
        kernel.stdin(Stdio::from(File::open(&file).expect("there")));
        run(kernel)
    }

    /// Where a DVM is on this host.
    ///
    /// # Panics
    /// When its directory is not there.
    #[must_use]
    pub fn place(&self, dvm: &str) -> DvmPlace {
        let runtime = RuntimeDir::create_at(self.runtime()).expect("the runtime directory");
        runtime.dvm(dvm).expect("the name of a DVM")
    }

    /// A client of this host's kernels.
    ///
    /// # Panics
    /// When none answers.
    #[must_use]
    pub fn client(&self, dvm: &str) -> Client {
        Client::connect(Target::new(self.place(dvm), "test")).expect("a kernel of this host")
    }
}

fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

/// The namespaces, and one that is the switch between them.
#[derive(Debug)]
struct Network {
    prefix: String,
    count: usize,
}

impl Network {
    fn new(count: usize) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let network = Self { prefix: format!("dvmt-{}-{number}", std::process::id()), count };
        let switch = network.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "switch", "up"]);
        for number in 0..count {
            let (host, port) = (network.namespace(number), format!("port{number}"));
            let peer = ["peer", "name", port.as_str(), "netns", &switch];
            ip(&["netns", "add", &host]);
            ip(&[&["link", "add", "eth", "netns", &host, "type", "veth"], &peer[..]].concat());
            ip(&["-n", &switch, "link", "set", &port, "master", "switch", "up"]);
            ip(&["-n", &host, "addr", "add", &format!("{}/24", address(number)), "dev", "eth"]);
            ip(&["-n", &host, "link", "set", "eth", "up"]);
            ip(&["-n", &host, "link", "set", "lo", "up"]);
        }
        network
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in (0..self.count).map(|number| self.namespace(number)).chain([self.switch()]) {
            // One that did not come about cannot be removed.
            let _ = Command::new("ip").args(["netns", "del", &namespace]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let mut ip = Command::new("ip");
    ip.args(arguments);
    let _ = run(ip).exits(0);
}

/// Waits until all hosts' kernels see so many members in a normal view.
///
/// # Panics
/// When they do not within [`PATIENCE`].
pub fn settle(hosts: &[Host], members: usize) {
    for host in hosts {
        wait_for(&format!("{} sees {members} members within {PATIENCE:?}", host.address()), || {
            let status = host.json(&["--timeout", "2s", "status"]);
            let status = (status.exit == 0).then(|| status.json())?;
            let view = &status["view"];
            (view["size"] == members && view["phase"] == "normal").then_some(())
        });
    }
}
