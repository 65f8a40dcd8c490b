//! `up`, `add`, `ticket`: how a DVM begins and grows.

use crate::context::{Context, status, unexpected};
use crate::dry_run::dry_run;
use crate::exit::{self, failed, not_available, usage};
use crate::fleet::{Fleet, Ground, Plan, adopt, bring_up, free_names};
use crate::keeper::{Duty, Keeper};
use crate::launch::{LOOPBACK, Launcher, Refused, find_kernel, runtime_of};
use crate::output::Output;
use crate::parse;
use crate::table::{Rows, count};
use clap::Args;
use dvm_plugin_api::client::{Client, Filter, Next, Target};
use dvm_plugin_api::local::{Answer, Failure, MemberDoc, Request, Since, Status};
use dvm_plugin_api::place::{self, DvmPlace, RuntimeDir};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From so many kernels on a bar shows how far it is.
const BAR_FROM: usize = 4;

/// Where kernels are to run.
#[derive(Debug, Args)]
struct Where {
    /// So many kernels on this host
    #[arg(long, value_name = "N")]
    local: Option<usize>,
    /// Hosts
    #[arg(long, value_name = "LIST", hide = true)]
    host: Option<String>,
    /// A file of hosts
    #[arg(long, value_name = "FILE", hide = true)]
    hostfile: Option<PathBuf>,
    /// How kernels are started
    #[arg(long, default_value = "auto", value_parser = ["auto", "local", "ssh", "slurm"], hide = true)]
    launcher: String,
    /// Mark the members; repeat
    #[arg(long = "tag", value_name = "K=V", value_parser = parse::pair)]
    tags: Vec<(String, String)>,
}

impl Where {
    /// How many kernels on this host.
    fn local(&self) -> Result<usize, Failure> {
        if self.host.is_some() || self.hostfile.is_some() || matches!(self.launcher.as_str(), "ssh" | "slurm")
        {
            return Err(not_available("starting kernels on other hosts").hint("start them here: --local N"));
        }
        match self.local.unwrap_or(1) {
            0 => Err(usage("--local wants at least 1")),
            local => Ok(local),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    place: Where,
    /// The DVM's name; default: yours, with a number if it is taken
    #[arg(long)]
    name: Option<String>,
    /// Whether a side without a quorum goes on
    #[arg(long, value_parser = ["survive", "quorum"])]
    partition: Option<String>,
    /// A setting; repeat
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse::pair)]
    settings: Vec<(String, String)>,
    /// So many members are enough
    #[arg(long, value_name = "N")]
    min: Option<usize>,
    /// Start a dead kernel again, at most so often, like 3/60s
    #[arg(long, value_name = "N/WINDOW", value_parser = parse::window)]
    respawn: Option<(u32, u64)>,
    /// Print what would be run
    #[arg(long)]
    dry_run: bool,
    /// Stay until the DVM ends; interrupted, end it
    #[arg(long)]
    foreground: bool,
    /// Run this with DVM_URI set, then halt; the exit status is its own
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    place: Where,
}

/// What `up` and `add` print.
#[derive(Serialize)]
struct Report<'a> {
    dvm: String,
    uri: String,
    members: Vec<&'a MemberDoc>,
    failed: &'a [Refused],
}

pub(crate) fn up(context: &Context, args: UpArgs) -> exit::Result {
    let members = args.place.local()?;
    let min = args.min.unwrap_or(members);
    if min == 0 || min > members {
        return Err(usage(format!("--min wants 1 to {members}, for so many members are started"))
            .hint("--local N starts more"));
    }
    let kernel = find_kernel(context.global.kernel.as_deref())?;
    let mut settings = args.settings;
    settings.extend(args.partition.map(|partition| ("partition".to_owned(), partition)));
    let plan = Plan {
        name: args.name,
        members,
        min,
        settings,
        tags: args.place.tags.into_iter().collect(),
        respawn: args.respawn,
        timeout: context.global.timeout,
    };
    if args.dry_run {
        return dry_run(context.out, &kernel, &plan);
    }
    let ground = Ground { runtime: RuntimeDir::create()?, logs: None, kernel };
    let bar = Bar::new(context, members);
    let fleet = bring_up(&ground, &plan, &|| bar.step())?;
    bar.end();
    if fleet.started.len() < plan.min {
        let halted = Keeper::start(&Duty::Halt(fleet.place().directory().into()));
        report(context.out, &fleet);
        drop(halted);
        context.out.note(format!("{} of {} were wanted; the DVM was halted", fleet.started.len(), plan.min));
        return Ok(exit::FAILURE);
    }
    crate::guardian::start(&fleet.launcher)?;
    if !args.command.is_empty() {
        return run_inside(context, &fleet, &args.command);
    }
    if args.foreground {
        return stay(context, &fleet);
    }
    report(context.out, &fleet);
    Ok(exit::OK)
}

pub(crate) fn add(context: &Context, args: &AddArgs) -> exit::Result {
    let members = args.place.local()?;
    let kernel = find_kernel(context.global.kernel.as_deref())?;
    let mut client = context.client()?;
    let place = client.target().place.clone();
    let runtime = runtime_of(&place)?;
    let lock = runtime.lock()?;
    let now = status(&mut client, context.timeout())?;
    let names = free_names(&now, &place, members)?;
    let launcher = Launcher {
        listen: LOOPBACK.into(),
        kernel,
        logs: logs_of(&now, &place),
        place,
        tags: args.place.tags.iter().cloned().collect(),
        respawn: None,
        timeout: context.global.timeout,
    };
    drop(client);
    let mut fleet = adopt(launcher, now);
    let bar = Bar::new(context, members);
    fleet.grow(&names, &|| bar.step())?;
    bar.end();
    drop(lock);
    report(context.out, &fleet);
    Ok(if fleet.failed.is_empty() { exit::OK } else { exit::FAILURE })
}

pub(crate) fn ticket(context: &Context) -> exit::Result {
    let mut client = context.client()?;
    match context.ask(&mut client, Request::Ticket)? {
        Answer::Ticket(ticket) => {
            context.out.tell(&json!({ "ticket": ticket }), || ticket.clone());
            Ok(exit::OK)
        }
        other => Err(unexpected(&other)),
    }
}

fn report(out: Output, fleet: &Fleet) {
    let Fleet { status, failed, .. } = fleet;
    let uri = fleet.place().uri();
    let report = Report { dvm: status.dvm.name.clone(), uri: uri.clone(), members: fleet.members(), failed };
    out.tell(&report, || {
        let mut rows = Rows::new(&["member", "rank", "host", "address", "pid"]);
        for member in fleet.members() {
            rows.push([
                member.name.clone(),
                member.rank.to_string(),
                member.host.clone(),
                member.address.clone(),
                member.pid.to_string(),
            ]);
        }
        format!(
            "DVM `{}`: {}\n{}\nDVM_URI={uri}",
            status.dvm.name,
            count(status.view.size, "member"),
            rows.text()
        )
    });
    if !out.is_json() {
        for refused in failed {
            out.failure(&refused.failure());
        }
    }
}

/// Runs a program inside a DVM that ends with it, however this process ends.
fn run_inside(context: &Context, fleet: &Fleet, command: &[String]) -> exit::Result {
    let keeper = Keeper::start(&Duty::Halt(fleet.place().directory().into()))?;
    let status = Command::new(&command[0]).args(&command[1..]).env("DVM_URI", fleet.place().uri()).status();
    context.out.detail("halting");
    drop(keeper);
    let status = status.map_err(|error| {
        failed(format!("cannot run {}: {error}", command[0]))
            .hint("the DVM that was started for it is halted")
    })?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(exit::FAILURE))
}

/// Stays until the DVM ends; when this process ends first, so does the DVM.
fn stay(context: &Context, fleet: &Fleet) -> exit::Result {
    let _keeper = Keeper::start(&Duty::Halt(fleet.place().directory().into()))?;
    // Who reads it may end this process at once.
    report(context.out, fleet);
    let client = Client::connect(Target::new(fleet.place().clone(), "dvm"))?;
    let mut events = client.events(Since::Now, Filter { follow: true, ..Filter::default() })?;
    drop(client);
    loop {
        match events.next(None)? {
            Next::Event(event) if event.kind == "detached" => return Ok(exit::NO_DVM),
            Next::Event(event) => context.out.detail(crate::events::text(&event)),
            Next::End(_) => return Ok(exit::OK),
            Next::Quiet => {}
        }
    }
}

/// The directory of a running DVM's logs on this host.
pub(crate) fn logs_of(status: &Status, place: &DvmPlace) -> PathBuf {
    let through = status.members.iter().find(|member| member.name == status.through);
    let told = through.map(|member| Path::new(&member.log)).filter(|log| log.is_absolute());
    told.and_then(Path::parent).map_or_else(|| place::log_dir(&place.name()), Path::to_path_buf)
}

/// How far a start is, on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(context: &Context, kernels: usize) -> Self {
        if kernels < BAR_FROM || context.global.quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style =
            ProgressStyle::with_template("{bar:32} {pos}/{len} members  {elapsed}").expect("a template");
        Self(ProgressBar::new(kernels as u64).with_style(style))
    }

    fn step(&self) {
        self.0.inc(1);
    }

    fn end(self) {
        self.0.finish_and_clear();
    }
}
