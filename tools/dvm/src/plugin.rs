//! `plugin`: what every member executes and all of them decide.

use crate::context::{Context, status, unexpected};
use crate::exit::{self, failed, usage};
use crate::library::{self, Library};
use crate::parse::{self, Limit};
use crate::project;
use crate::selector;
use crate::show::{plugin_text, plugins};
use crate::table::{Rows, count};
use crate::trial;
use clap::{Args, Subcommand};
use dvm_plugin_api::client::Client;
use dvm_plugin_api::local::{
    Answer, Every, Failure, FailureCode, Load, PluginDoc, Request, ResultDoc, TransactionDoc, TransactionKind,
};
use dvm_plugin_api::manifest::Manifest;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a library in one request.
const PART: usize = 1 << 20;

/// How often a library is sent anew because the kernel that held its parts was lost.
const UPLOADS: usize = 4;

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Load a plug-in at every member
    Load(LoadArgs),
    /// Unload it
    Unload {
        /// The plug-in
        name: String,
        #[command(flatten)]
        rule: Rule,
    },
    /// Change its configuration
    Configure {
        /// The plug-in
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        rule: Rule,
    },
    /// Put another library in its place; its state is handed over
    Upgrade {
        /// The plug-in
        name: String,
        /// The new library, or the name of one
        #[arg(value_name = "FILE|NAME")]
        file: String,
        /// The member that tries it first; default: the primary's, or the first instance's
        #[arg(long, value_name = "M")]
        canary: Option<String>,
        #[command(flatten)]
        rule: Rule,
    },
    /// Print one plug-in with its instances
    Show {
        /// The plug-in
        name: String,
    },
    /// Print all
    List,
    /// Make a project in a new directory; it builds, tests itself without a DVM, and loads as it is
    New(project::NewArgs),
    /// Run a library in a small DVM in memory that loses, pauses and promotes its instances
    Test(trial::TestArgs),
    /// Look at a library without running it, and without a DVM
    Check {
        /// The library
        #[arg(value_name = "FILE|NAME")]
        file: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// A library, or the name of one in DVM_PLUGIN_PATH, lib/dvm/plugins, or beside dvm; none for an application
    #[arg(value_name = "FILE|NAME")]
    file: Option<String>,
    /// Load it under this name; default: its own
    #[arg(long)]
    name: Option<String>,
    /// Who runs it, and who applies its commands
    #[arg(long, default_value = "parallel", value_parser = ["parallel", "hot", "warm", "single"])]
    mode: String,
    /// How many instances, the primary included; default: hot and warm 2
    #[arg(long, value_name = "K")]
    instances: Option<u16>,
    /// Members it may be on: names, k[0-3], tag=value; repeat or separate by commas; default: all
    #[arg(long, value_name = "SELECTOR")]
    on: Vec<String>,
    /// No primary in provisional views, and none before the lease of a lost one is over
    #[arg(long)]
    only_confirmed: bool,
    /// How often a warm standby takes a new snapshot: after N commands, or every T, like 10s
    #[arg(long, value_name = "N|T", default_value = "4096", value_parser = parse::every)]
    snapshot_every: Every,
    /// In a process of its own, inside the kernel, or in applications that attach
    #[arg(long, default_value = "process", value_parser = ["process", "kernel", "application"])]
    placement: String,
    /// Format of an application's commands and replies
    #[arg(long, value_parser = ["msgpack", "json", "bytes"])]
    payload: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// At most so many restarts, like 3/60s
    #[arg(long, value_name = "N/WINDOW", default_value = "3/60s", value_parser = parse::window)]
    restart: (u32, u64),
    /// Longest a callback may take
    #[arg(long, value_name = "T", default_value = "5s", value_parser = parse::duration)]
    deadline: Duration,
    /// What an instance may use, like memory=512M,cpu=60s; one that uses more is ended and started again
    #[arg(long, value_name = "LIMITS", value_delimiter = ',', value_parser = parse::limit)]
    limit: Vec<Limit>,
    /// It has no state to hand over
    #[arg(long)]
    stateless: bool,
    #[command(flatten)]
    rule: Rule,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// A configuration in TOML or JSON; replaces what was there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key: K=V, or K- to remove; repeat
    #[arg(short = 'c', value_name = "K=V", value_parser = parse::change)]
    changes: Vec<(String, Option<Value>)>,
}

#[derive(Debug, Args)]
pub(crate) struct Rule {
    /// Who must succeed: all, majority, at-least:K, any; default: the DVM's setting
    #[arg(long, value_name = "RULE", value_parser = parse::require)]
    require: Option<String>,
    /// Execute and tell, change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(context: &Context, command: PluginCommand) -> exit::Result {
    match command {
        PluginCommand::Load(args) => load(context, args),
        PluginCommand::Unload { name, rule } => {
            let mut client = context.client()?;
            transact(context, &mut client, TransactionKind::Unload { plugin: name }, rule)
        }
        PluginCommand::Configure { name, config, rule } => {
            let replace = config.config.is_some();
            let keys = config.read()?;
            if keys.is_empty() && !replace {
                return Err(usage("nothing to change").hint("give -c KEY=VALUE, -c KEY- or --config FILE"));
            }
            let mut client = context.client()?;
            transact(context, &mut client, TransactionKind::Configure { plugin: name, replace, keys }, rule)
        }
        PluginCommand::Upgrade { name, file, canary, rule } => {
            let library = library::read(&library::find(&file)?)?;
            let kind = TransactionKind::Upgrade {
                plugin: name,
                version: library.manifest.version.clone(),
                payload: library.manifest.payload.clone(),
                hash: library.hash.clone(),
                size: library.bytes.len() as u64,
                canary,
            };
            let mut client = context.client()?;
            let timeout = context.timeout_agreed(&mut client)?;
            let document = send_and_transact(&mut client, &library, kind.clone(), rule, timeout)?;
            tell(context, &mut client, &kind, &document)
        }
        PluginCommand::Show { name } => show(context, &name),
        PluginCommand::List => plugins(context),
        PluginCommand::New(args) => project::new(context, &args),
        PluginCommand::Test(args) => trial::test(context, args),
        PluginCommand::Check { file } => check(context, &file),
    }
}

fn load(context: &Context, args: LoadArgs) -> exit::Result {
    let library = match (&args.file, args.placement.as_str()) {
        (None, "application") => None,
        (Some(file), "application") => {
            return Err(usage(format!("an application brings its own code, and {file} is none of it"))
                .hint("leave the file out; --name and --payload say what applications will attach to"));
        }
        (Some(file), _) => Some(library::read(&library::find(file)?)?),
        (None, _) => return Err(usage("which library?").hint("give a FILE or the NAME of one")),
    };
    let config = args.config.read()?;
    if let Some((key, _)) = config.iter().find(|(_, value)| value.is_none()) {
        return Err(usage(format!("-c {key}- removes a key, and there is none before a load")));
    }
    let plain = match (&library, &args.name) {
        (Some(_), _) if args.payload.is_some() => {
            return Err(usage("a library says itself in which format its commands are")
                .hint("--payload goes with --placement application"));
        }
        (Some(library), _) => plain(library),
        (None, Some(name)) => nothing(name, args.payload.as_deref().unwrap_or("msgpack")),
        (None, None) => return Err(usage("under which name?").hint("give --name NAME")),
    };
    let load = Load {
        name: args.name.unwrap_or(plain.name),
        mode: args.mode,
        placement: args.placement,
        config: config.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
        restart_times: args.restart.0,
        restart_window_ms: args.restart.1,
        deadline_ms: u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX),
        stateless: args.stateless,
        instances: args.instances,
        on: selector::terms(&args.on)?,
        only_confirmed: args.only_confirmed,
        snapshot_every: args.snapshot_every,
        memory: args.limit.iter().find_map(|limit| limit.memory()),
        cpu_ms: args.limit.iter().find_map(|limit| limit.cpu_ms()),
        ..plain
    };
    let mut client = context.client()?;
    let timeout = context.timeout_agreed(&mut client)?;
    let kind = TransactionKind::Load(Box::new(load));
    let Some(library) = library else { return transact(context, &mut client, kind, args.rule) };
    let document = send_and_transact(&mut client, &library, kind.clone(), args.rule, timeout)?;
    tell(context, &mut client, &kind, &document)
}

/// A load without a library, with nothing else asked for.
fn nothing(name: &str, payload: &str) -> Load {
    Load::of(name.into(), String::new(), payload.into(), String::new(), 0)
}

/// Sends a library and proposes what is done with it. The kernel that holds the library may be lost before it has
/// proposed: then both are repeated at another one, with one stamp, so that it takes effect once.
fn send_and_transact(
    client: &mut Client,
    library: &Library,
    kind: TransactionKind,
    rule: Rule,
    timeout: Option<Duration>,
) -> Result<TransactionDoc, Failure> {
    let stamp = client.stamp();
    let request = Request::Transact { kind, require: rule.require, dry_run: rule.dry_run };
    let mut uploads = 0;
    loop {
        uploads += 1;
        let through = client.through().map(str::to_owned);
        send(client, library, timeout)?;
        if client.through() != through.as_deref() && uploads < UPLOADS {
            continue;
        }
        let through = client.through().map(str::to_owned);
        match client.request(request.clone(), Some(stamp.clone()), timeout) {
            Ok(Answer::Transaction(document)) => return Ok(*document),
            Ok(other) => return Err(unexpected(&other)),
            Err(failure)
                if failure.code == FailureCode::NotFound
                    && client.through() != through.as_deref()
                    && uploads < UPLOADS => {}
            Err(failure) => return Err(failure),
        }
    }
}

fn send(client: &mut Client, library: &Library, timeout: Option<Duration>) -> Result<(), Failure> {
    for (number, part) in library.bytes.chunks(PART).enumerate() {
        let request = Request::PutBlob {
            hash: library.hash.clone(),
            size: library.bytes.len() as u64,
            offset: (number * PART) as u64,
            data: part.to_vec(),
        };
        client.request(request, None, timeout)?;
    }
    Ok(())
}

/// Loads a library for commands that need it loaded; `shape` changes what a load asks for by itself.
pub(crate) fn load_in(
    client: &mut Client,
    path: &Path,
    shape: impl FnOnce(Load) -> Load,
    timeout: Duration,
) -> Result<TransactionDoc, Failure> {
    let library = library::read(path)?;
    let load = shape(plain(&library));
    let (kind, rule) = (TransactionKind::Load(Box::new(load)), Rule { require: None, dry_run: false });
    send_and_transact(client, &library, kind, rule, Some(timeout))
}

/// Does to a plug-in what every member must succeed in, for commands that need it done.
pub(crate) fn transact_in(
    client: &mut Client,
    kind: TransactionKind,
    timeout: Duration,
) -> Result<TransactionDoc, Failure> {
    let request = Request::Transact { kind, require: None, dry_run: false };
    match client.request(request, None, Some(timeout))? {
        Answer::Transaction(document) => Ok(*document),
        other => Err(unexpected(&other)),
    }
}

/// A load that asks for nothing in particular.
fn plain(library: &Library) -> Load {
    let Manifest { name, version, payload, .. } = library.manifest.clone();
    Load::of(name, version, payload, library.hash.clone(), library.bytes.len() as u64)
}

fn transact(context: &Context, client: &mut Client, kind: TransactionKind, rule: Rule) -> exit::Result {
    let timeout = context.timeout_agreed(client)?;
    let request = Request::Transact { kind: kind.clone(), require: rule.require, dry_run: rule.dry_run };
    match client.request(request, None, timeout)? {
        Answer::Transaction(document) => tell(context, client, &kind, &document),
        other => Err(unexpected(&other)),
    }
}

/// Prints how a transaction ended; the exit code says it too.
fn tell(
    context: &Context,
    client: &mut Client,
    kind: &TransactionKind,
    document: &TransactionDoc,
) -> exit::Result {
    context.out.tell(document, || {
        // The transaction has ended however this goes.
        let now = status(client, context.timeout()).ok();
        let plugins = now.map(|now| now.plugins).unwrap_or_default();
        let plugin = plugins.iter().find(|plugin| plugin.name == name_of(kind));
        match remark(kind, document, plugin) {
            Some(remark) => format!("{}\n{remark}", text(document)),
            None => text(document),
        }
    });
    Ok(match document.outcome.as_str() {
        "committed" => exit::OK,
        "rejected" => exit::REJECTED,
        _ => exit::UNKNOWN,
    })
}

fn name_of(kind: &TransactionKind) -> &str {
    match kind {
        TransactionKind::Load(load) => &load.name,
        TransactionKind::Unload { plugin }
        | TransactionKind::Configure { plugin, .. }
        | TransactionKind::Upgrade { plugin, .. } => plugin,
    }
}

/// What the end of a transaction leaves behind, where the members' results do not say it. `plugin` is how it is now.
fn remark(kind: &TransactionKind, document: &TransactionDoc, plugin: Option<&PluginDoc>) -> Option<String> {
    let name = name_of(kind);
    match (kind, document.outcome.as_str()) {
        _ if document.dry_run => None,
        (TransactionKind::Load(_), "rejected") => Some(format!("no member keeps anything of {name}")),
        (TransactionKind::Configure { .. }, "rejected") => {
            Some(format!("{name} goes on everywhere with the configuration it had"))
        }
        (TransactionKind::Upgrade { .. } | TransactionKind::Unload { .. }, "rejected") => {
            let PluginDoc { version, state, .. } = plugin?;
            Some(match state.as_str() {
                "running" => format!("{name} {version} goes on everywhere"),
                state => format!("{name} {version} stays as it was, {state}"),
            })
        }
        (TransactionKind::Load(load), "committed") if matches!(load.mode.as_str(), "hot" | "warm") => {
            let plugin = plugin?;
            let lives = plugin.instances.iter().filter(|instance| instance.state != "failed").count();
            let more = match load.on.is_empty() {
                true => "`dvm add` gives it more",
                false => "a member that --on means gives it more",
            };
            (lives < plugin.wanted).then(|| {
                format!(
                    "{lives} of {}: no further member may have one; {more}",
                    count(plugin.wanted, "instance")
                )
            })
        }
        _ => None,
    }
}

fn text(document: &TransactionDoc) -> String {
    let TransactionDoc { transaction, outcome, dry_run, require, receipt, results } = document;
    let mut rows = Rows::new(&["member", "result", "stage", "code", "reason"]);
    for result in results {
        rows.push([
            result.member.clone(),
            result.result.clone(),
            result.stage.clone(),
            result.code.clone(),
            reason(result, results),
        ]);
    }
    let place = if receipt.index > 0 { format!(" at index {}", receipt.index) } else { String::new() };
    let dry = if *dry_run { ", dry run: nothing was changed" } else { "" };
    format!("{outcome}{place} (require {require}, transaction {transaction}{dry})\n{}", rows.text())
}

/// A member's reason. What it repeats of the canary stands in the canary's row already.
fn reason(result: &ResultDoc, results: &[ResultDoc]) -> String {
    let said = |other: &&ResultDoc| other.code != "canary" && result.reason.ends_with(&other.reason);
    let canary = (result.code == "canary")
        .then(|| results.iter().filter(|other| !other.reason.is_empty()).find(said))
        .flatten();
    canary.map_or_else(|| result.reason.clone(), |canary| format!("not tried: see {}", canary.member))
}

fn show(context: &Context, name: &str) -> exit::Result {
    let status = status(&mut context.client()?, context.timeout())?;
    let plugin = status.plugins.iter().find(|plugin| plugin.name == name).ok_or_else(|| {
        let names: Vec<_> = status.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
        let failure = Failure::new(FailureCode::NotFound, format!("no plug-in `{name}` is loaded"));
        if names.is_empty() { failure } else { failure.hint(format!("there are {}", names.join(", "))) }
    })?;
    context.out.tell(plugin, || plugin_text(plugin));
    Ok(exit::OK)
}

fn check(context: &Context, file: &str) -> exit::Result {
    let library = library::read(&library::find(file)?)?;
    context.out.tell(&library.report(), || library.text());
    Ok(exit::OK)
}

impl ConfigArgs {
    /// The file's keys, then the single ones over them.
    pub(crate) fn read(self) -> Result<BTreeMap<String, Option<Value>>, Failure> {
        let mut keys = BTreeMap::new();
        if let Some(file) = &self.config {
            keys.extend(read_config(file)?.into_iter().map(|(key, value)| (key, Some(value))));
        }
        for (key, value) in self.changes {
            if value.is_none() && self.config.is_some() {
                keys.remove(&key);
            } else {
                keys.insert(key, value);
            }
        }
        Ok(keys)
    }
}

fn read_config(file: &Path) -> Result<Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| failed(format!("cannot read {}: {error}", file.display())))?;
    let wrong = |error: String| usage(format!("{} is no configuration", file.display())).cause(error);
    if file.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&text).map_err(|error| wrong(error.to_string()));
    }
    toml::from_str(&text)
        .map_err(|error| wrong(error.to_string()).hint("TOML, or JSON in a file named .json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_plugin_api::local::{InstanceDoc, Receipt};

    fn ended(outcome: &str, results: &[(&str, &str, &str)]) -> TransactionDoc {
        let result = |(member, code, reason): &(&str, &str, &str)| ResultDoc {
            member: (*member).into(),
            result: if code.is_empty() { "ok" } else { "failed" }.into(),
            stage: String::new(),
            code: (*code).into(),
            reason: (*reason).into(),
        };
        TransactionDoc {
            transaction: "t1.1".into(),
            outcome: outcome.into(),
            dry_run: false,
            require: "all".into(),
            receipt: Receipt::default(),
            results: results.iter().map(result).collect(),
        }
    }

    fn plugin(state: &str, wanted: usize, instances: &[&str]) -> PluginDoc {
        let instance = |(rank, state): (usize, &&str)| InstanceDoc {
            member: format!("k{rank}"),
            rank: u16::try_from(rank).expect("a few"),
            role: "active".into(),
            state: (*state).into(),
            placement: "process".into(),
            pid: 0,
            applied: None,
        };
        PluginDoc {
            name: "lease".into(),
            version: "0.1.0".into(),
            hash: String::new(),
            mode: "hot".into(),
            state: state.into(),
            config: Map::new(),
            wanted,
            restarts: 0,
            failures: 0,
            primary: None,
            fence: None,
            instances: instances.iter().enumerate().map(instance).collect(),
        }
    }

    fn load(mode: &str, on: &[&str]) -> TransactionKind {
        let load = Load::of("lease".into(), String::new(), "json".into(), String::new(), 0);
        let on = on.iter().map(ToString::to_string).collect();
        TransactionKind::Load(Box::new(Load { mode: mode.into(), on, ..load }))
    }

    fn upgrade() -> TransactionKind {
        TransactionKind::Upgrade {
            plugin: "lease".into(),
            version: "0.2.0".into(),
            payload: "json".into(),
            hash: String::new(),
            size: 0,
            canary: None,
        }
    }

    fn check(kind: &TransactionKind, outcome: &str, now: Option<PluginDoc>, expected: Option<&str>) {
        assert_eq!(remark(kind, &ended(outcome, &[]), now.as_ref()).as_deref(), expected, "{kind:?}");
    }

    #[test]
    fn a_rejection_says_what_goes_on() {
        let running = || Some(plugin("running", 2, &["running", "running"]));
        check(&upgrade(), "rejected", running(), Some("lease 0.1.0 goes on everywhere"));
        let failed = plugin("failed", 2, &["failed", "failed"]);
        check(&upgrade(), "rejected", Some(failed), Some("lease 0.1.0 stays as it was, failed"));
        check(&upgrade(), "rejected", None, None);
        check(&upgrade(), "committed", running(), None);
        check(&load("hot", &[]), "rejected", None, Some("no member keeps anything of lease"));
    }

    #[test]
    fn a_load_that_has_fewer_instances_than_it_wants_says_so() {
        let few = || Some(plugin("degraded", 9, &["running", "starting"]));
        let told = "2 of 9 instances: no further member may have one; `dvm add` gives it more";
        check(&load("hot", &[]), "committed", few(), Some(told));
        let told = "2 of 9 instances: no further member may have one; a member that --on means gives it more";
        check(&load("warm", &["gpu=yes"]), "committed", few(), Some(told));
        let enough = plugin("loading", 2, &["starting", "starting"]);
        check(&load("hot", &[]), "committed", Some(enough), None);
    }

    #[test]
    fn what_the_canary_says_is_told_once() {
        let results = [("k0", "canary", "the canary says: it aborts"), ("k1", "crash", "it aborts")];
        let text = text(&ended("rejected", &results));
        assert_eq!(text.matches("it aborts").count(), 1, "{text}");
        assert!(text.contains("not tried: see k1"), "{text}");
        // Its own result may not be there.
        let alone = super::text(&ended("rejected", &results[..1]));
        assert!(alone.contains("the canary says: it aborts"), "{alone}");
    }
}
