//! `up --dry-run`: what would be started, in full, and nothing is.

use crate::exit;
use crate::fleet::{Plan, take_name};
use crate::launch::{LOOPBACK, Launcher, host_name};
use crate::output::Output;
use crate::table::{or_dash, pairs};
use dvm_plugin_api::local::{Bootstrap, BootstrapRole, Failure};
use dvm_plugin_api::place::{self, DvmPlace, RuntimeDir};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Stands for a ticket, which is a secret and made when the kernel is started.
const TICKET: &str = "TICKET";

/// One kernel that would be started.
#[derive(Serialize)]
struct Start {
    host: String,
    member: String,
    line: String,
    /// What it would read on its standard input.
    stdin: Bootstrap,
    socket: PathBuf,
    log: PathBuf,
    listen: String,
    /// Ports it may listen at; none: any that is free.
    ports: Option<String>,
}

/// Prints what `up` would start by this plan.
pub(crate) fn dry_run(out: Output, kernel: &Path, plan: &Plan) -> exit::Result {
    // One that must not be used is refused as it would be then, and one that is missing is not created.
    RuntimeDir::open()?;
    let place = take_name(&vacant, plan.name.as_deref())?;
    let launcher = Launcher {
        listen: LOOPBACK.into(),
        kernel: kernel.into(),
        logs: place::log_dir(&place.name()),
        place,
        tags: plan.tags.clone(),
        respawn: plan.respawn,
        timeout: plan.timeout,
    };
    let starts: Vec<_> =
        (0..plan.members).map(|number| start(&launcher, plan, number)).collect::<Result<_, _>>()?;
    let settings: serde_json::Map<_, _> =
        plan.settings.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let body = json!({
        "dry_run": true,
        "dvm": launcher.place.name(),
        "uri": launcher.place.uri(),
        "runtime_dir": launcher.place.directory().parent(),
        "log_dir": launcher.logs,
        "settings": settings,
        "tags": plan.tags,
        "min": plan.min,
        "respawn": plan.respawn.map(|(times, window_ms)| json!({"times": times, "window_ms": window_ms})),
        "commands": starts,
    });
    out.tell(&body, || text(&launcher, plan, &starts));
    Ok(exit::OK)
}

/// The place of a DVM that need not be there.
fn vacant(name: &str) -> Result<DvmPlace, Failure> {
    place::check_name(name)?;
    Ok(DvmPlace::at(&RuntimeDir::default_path().join(name))?.0)
}

fn start(launcher: &Launcher, plan: &Plan, number: usize) -> Result<Start, Failure> {
    let member = format!("k{number}");
    let role = match number {
        0 => BootstrapRole::Found { settings: plan.settings.clone() },
        _ => BootstrapRole::Join { ticket: TICKET.into() },
    };
    let stdin = launcher.bootstrap(&member, role);
    Ok(Start {
        host: host_name(),
        line: launcher.line(),
        socket: launcher.place.socket(&member)?,
        log: place::log_file(&launcher.logs, &member),
        listen: stdin.listen.clone(),
        ports: std::env::var("DVM_PORT_RANGE").ok().filter(|range| !range.is_empty()),
        member,
        stdin,
    })
}

fn text(launcher: &Launcher, plan: &Plan, starts: &[Start]) -> String {
    let or_defaults = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
    let settings = pairs(plan.settings.iter().map(|(key, value)| (key, value.clone())));
    let tags = pairs(plan.tags.iter().map(|(key, value)| (key, value.clone())));
    let respawn = plan.respawn.map(|(times, window_ms)| format!("{times} in {window_ms} ms"));
    let mut lines = vec![
        format!("DVM `{}` at {}; nothing is started", launcher.place.name(), launcher.place.uri()),
        format!("settings   {}", or_defaults(settings, "the defaults")),
        format!("tags       {}", or_defaults(tags, "-")),
        format!("respawn    {}", or_dash(respawn)),
        format!("wanted     {} of {}", plan.min, plan.members),
    ];
    for Start { host, member, line, stdin, socket, log, listen, ports } in starts {
        let stdin = serde_json::to_string(stdin).expect("plain data");
        lines.push(format!("\n{member} on {host}: {line}"));
        lines.push(format!("  reads    {stdin}"));
        lines.push(format!("  socket   {}", socket.display()));
        lines.push(format!("  log      {}", log.display()));
        lines.push(format!("  listens  at {listen}, port {}", ports.as_deref().unwrap_or("any")));
    }
    lines.join("\n")
}
