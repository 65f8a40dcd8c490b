//! A DVM on this host, from the first kernel to all of them: what `up`, `add`, `bench` and `demo` have in common.

use crate::context::status;
use crate::exit::failed;
use crate::launch::{LOOPBACK, Launcher, Refused, Started};
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{BootstrapRole, Failure, MemberDoc, Status};
use dvm_plugin_api::place::{self, DvmPlace, RuntimeDir};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long all members may take to be in one view after the last of them joined.
const GATHER: Duration = Duration::from_secs(10);

/// Pause between two looks at the view.
const LOOK: Duration = Duration::from_millis(2);

/// Where DVMs are started.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) runtime: RuntimeDir,
    /// Directory of the logs, where it is not the user's.
    pub(crate) logs: Option<PathBuf>,
    pub(crate) kernel: PathBuf,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The DVM's name; none: the user's, with a number where that is taken.
    pub(crate) name: Option<String>,
    pub(crate) members: usize,
    /// So many are enough.
    pub(crate) min: usize,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) respawn: Option<(u32, u64)>,
    pub(crate) timeout: Option<Duration>,
}

/// A DVM, and what this command started of it.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) launcher: Launcher,
    pub(crate) started: Vec<Started>,
    pub(crate) failed: Vec<Refused>,
    /// As it was when all had gathered.
    pub(crate) status: Status,
}

impl Fleet {
    /// The DVM's place.
    pub(crate) fn place(&self) -> &DvmPlace {
        &self.launcher.place
    }

    /// A session with it, through any kernel.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::connect(Target::new(self.place().clone(), "dvm"))
    }

    /// The members that this command started.
    pub(crate) fn members(&self) -> Vec<&MemberDoc> {
        let ours = |member: &&MemberDoc| self.started.iter().any(|started| started.id == member.id);
        self.status.members.iter().filter(ours).collect()
    }

    /// Starts further members `names`. Those that this command started before stay in the list.
    pub(crate) fn grow(&mut self, names: &[String], each: &(dyn Fn() + Sync)) -> Result<(), Failure> {
        let mut client = self.client()?;
        let before = status(&mut client, Some(GATHER))?.members.len();
        let (started, refused) = self.launcher.join(client, names, each);
        let size = before + started.len();
        self.started.extend(started);
        self.started.sort_by_key(|started| place::natural(&started.member));
        self.failed.extend(refused);
        self.status = self.gather(size)?;
        Ok(())
    }

    /// Waits until the view has so many members; where one is lost meanwhile, until all have been seen.
    fn gather(&self, size: usize) -> Result<Status, Failure> {
        let mut client = self.client()?;
        let deadline = Instant::now() + self.launcher.timeout.unwrap_or(GATHER);
        loop {
            let now = status(&mut client, Some(GATHER))?;
            if now.view.size + now.departed.len() >= size && now.view.phase == "normal" {
                return Ok(now);
            }
            if Instant::now() >= deadline {
                return Err(failed(format!(
                    "the members do not come together: the view has {} of {size}",
                    now.view.size
                ))
                .cause(format!("phase {}, waiting for {:?}", now.view.phase, now.view.waiting_for))
                .hint(format!("see `dvm status --dvm {}` and `dvm logs`", self.place().uri())));
            }
            sleep(LOOK);
        }
    }
}

/// Takes a name and starts a DVM. `each` is called after each kernel. With fewer than `min` members the failures are
/// in the result and the DVM runs.
pub(crate) fn bring_up(ground: &Ground, plan: &Plan, each: &(dyn Fn() + Sync)) -> Result<Fleet, Failure> {
    let lock = ground.runtime.lock()?;
    let place = take_name(&|name| Ok(ground.runtime.dvm(name)?), plan.name.as_deref())?;
    place.create()?;
    place.sweep()?;
    let launcher = Launcher {
        listen: LOOPBACK.into(),
        kernel: ground.kernel.clone(),
        logs: logs(ground, &place)?,
        place,
        tags: plan.tags.clone(),
        respawn: plan.respawn,
        timeout: plan.timeout,
    };
    let first = launcher.start("k0", BootstrapRole::Found { settings: plan.settings.clone() }).map_err(
        |refused| {
            // Nobody lives in it; one that holds something is kept.
            let _ = std::fs::remove_dir(launcher.place.directory());
            refused.failure()
        },
    )?;
    each();
    // The name is taken now: its socket accepts.
    drop(lock);
    let mut client = Client::connect(Target::new(launcher.place.clone(), "dvm"))?;
    let status = status(&mut client, Some(GATHER))?;
    drop(client);
    let mut fleet = Fleet { launcher, started: vec![first], failed: Vec::new(), status };
    let names: Vec<_> = (1..plan.members).map(|number| format!("k{number}")).collect();
    if !names.is_empty() {
        fleet.grow(&names, each)?;
    }
    Ok(fleet)
}

/// A running DVM, to be grown by this command.
pub(crate) fn adopt(launcher: Launcher, status: Status) -> Fleet {
    Fleet { launcher, started: Vec::new(), failed: Vec::new(), status }
}

/// The first `count` names that no member has or had.
pub(crate) fn free_names(status: &Status, place: &DvmPlace, count: usize) -> Result<Vec<String>, Failure> {
    let here = place.members()?;
    let taken = status
        .members
        .iter()
        .map(|member| &member.name)
        .chain(status.departed.iter().map(|departed| &departed.member))
        .chain(&here)
        .filter_map(|name| name.strip_prefix('k')?.parse::<usize>().ok())
        .max();
    let first = taken.map_or(0, |last| last + 1);
    Ok((first..first + count).map(|number| format!("k{number}")).collect())
}

/// The place of a new DVM: that of the name given, else of the user's, with a number where that is taken. `at` knows the
/// place of a name.
pub(crate) fn take_name(
    at: &dyn Fn(&str) -> Result<DvmPlace, Failure>,
    given: Option<&str>,
) -> Result<DvmPlace, Failure> {
    if let Some(name) = given {
        let place = at(name)?;
        if place.is_live() {
            return Err(failed(format!("a DVM `{name}` lives on this host"))
                .cause(format!("its members here: {}", place.live_members().join(", ")))
                .hint("give another --name, or end it with `dvm halt`"));
        }
        return Ok(place);
    }
    let user = std::env::var("USER").ok().filter(|user| user.len() < 50 && place::check_name(user).is_ok());
    let base = user.unwrap_or_else(|| "dvm".into());
    let mut place = at(&base)?;
    let mut number = 2;
    while place.is_live() {
        place = at(&format!("{base}-{number}"))?;
        number += 1;
    }
    Ok(place)
}

/// The directory of a new DVM's logs.
fn logs(ground: &Ground, place: &DvmPlace) -> Result<PathBuf, Failure> {
    let logs = ground.logs.clone().unwrap_or_else(|| place::log_dir(&place.name()));
    let logs = std::path::absolute(&logs)
        .map_err(|error| failed(format!("cannot use {}: {error}", logs.display())))?;
    place::log_dir_ready(&logs)?;
    Ok(logs)
}
