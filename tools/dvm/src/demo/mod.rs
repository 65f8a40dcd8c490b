//! `demo`: what this is, shown in half a minute. Five kernels on this machine, in a directory of their own that is
//! gone afterwards; a write that everybody holds, a plug-in that everybody agreed to, a kernel killed, nothing lost.

mod picture;

use crate::bench::kill_and_watch;
use crate::context::{Context, status, unexpected};
use crate::exit::{self, failed};
use crate::fleet::{Fleet, Ground, Plan, bring_up, free_names};
use crate::history::compare;
use crate::keeper::{self, Scratch};
use crate::launch::find_kernel;
use crate::library;
use crate::output::Output;
use crate::plugin::load_in;
use crate::processes::{kernels, lives};
use crate::table::count;
use clap::Args;
use dvm_plugin_api::client::Client;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Operation, Request, Status};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Kernels.
const KERNELS: usize = 5;

/// Writes before and after the kill.
const WRITES: usize = 100;

/// How long any one request may take.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep nothing on the screen but failures
    #[arg(long, hide = true)]
    silent: bool,
}

pub(crate) fn demo(context: &Context, args: &DemoArgs) -> exit::Result {
    let out = context.out;
    let begin = Instant::now();
    let scratch = Scratch::create("demo")?;
    let mut demo =
        Demo { out, silent: args.silent || out.is_json(), step: 0, stage: "", acknowledged: BTreeMap::new() };
    demo.run(context, &scratch).map_err(|failure| {
        let message = format!("step {} ({}) failed: {}", demo.step, demo.stage, failure.message);
        Failure { code: FailureCode::Failure, message, ..failure }
    })?;
    drop(scratch);
    let seconds = begin.elapsed().as_secs_f64();
    out.tell(&json!({"demo": "ok", "steps": demo.step, "seconds": (seconds * 10.0).round() / 10.0}), || {
        format!("\nDone in {seconds:.1} s. Your turn: `dvm up --local 4`, then `dvm status`.")
    });
    Ok(exit::OK)
}

/// The show, and what it must be able to show in the end.
struct Demo {
    out: Output,
    silent: bool,
    step: usize,
    stage: &'static str,
    /// Keys and values of writes that were acknowledged.
    acknowledged: BTreeMap<String, Value>,
}

impl Demo {
    fn run(&mut self, context: &Context, scratch: &Scratch) -> Result<(), Failure> {
        self.begin(
            "start",
            format!("Start {KERNELS} kernels. Each joins the ring with a ticket that works once."),
        );
        let kernel = find_kernel(context.global.kernel.as_deref())?;
        let ground = Ground { runtime: scratch.runtime.clone(), logs: Some(scratch.logs.clone()), kernel };
        let mut fleet = self.start(&ground)?;
        let mut client = fleet.client()?;

        self.begin("write", "Write keys. A write is acknowledged once every member holds it.".into());
        self.write(&mut client, "before", WRITES)?;

        self.begin(
            "agree",
            "Load the plug-in `counter`. Every member tries it; it runs if all succeed.".into(),
        );
        let expected = self.plugin(&mut client)?;

        self.begin("kill", "Kill one kernel with SIGKILL, and listen at every survivor.".into());
        self.kill(&mut fleet)?;

        self.begin("go on", "Go on writing and counting with those that are left.".into());
        self.write(&mut client, "after", WRITES)?;
        let expected = self.count(&mut client, expected)?;

        self.begin("grow", "Add a member. It gets the state, then the history since.".into());
        self.grow(&mut fleet, &mut client)?;

        self.begin(
            "verify",
            "Verify: one history everywhere, and nothing lost that was acknowledged.".into(),
        );
        self.verify(&mut client, expected)?;

        self.begin("halt", "Halt. Nothing stays behind.".into());
        self.halt(&fleet, client)
    }

    fn start(&self, ground: &Ground) -> Result<Fleet, Failure> {
        let settings = vec![("chaos".into(), "true".into())];
        let plan =
            Plan { name: Some("demo".into()), members: KERNELS, min: KERNELS, settings, ..Plan::default() };
        let begin = Instant::now();
        let fleet = bring_up(ground, &plan, &|| ())?;
        if let Some(refused) = fleet.failed.first() {
            return Err(refused.failure());
        }
        self.say(format!(
            "{} in {:.0} ms, view {} ({})",
            count(fleet.status.view.size, "member"),
            ms(begin),
            fleet.status.view.id,
            fleet.status.view.label
        ));
        self.ring(&fleet.status, None);
        Ok(fleet)
    }

    fn write(&mut self, client: &mut Client, prefix: &str, writes: usize) -> Result<(), Failure> {
        let begin = Instant::now();
        for number in 0..writes {
            let (key, value) = (format!("demo/{prefix}/{number:03}"), json!({"number": number}));
            let put = Operation::Put { key: key.clone(), value: value.clone() };
            let request =
                Request::StateTransaction { conditions: vec![], then: vec![put], otherwise: vec![] };
            match client.request(request, None, Some(LIMIT))? {
                Answer::Done { .. } => self.acknowledged.insert(key, value),
                other => return Err(unexpected(&other)),
            };
        }
        let each = ms(begin) * 1e3 / writes as f64;
        self.say(format!("{writes} writes acknowledged, {each:.0} µs each, one after the other"));
        let key = format!("demo/{prefix}/{:03}", writes - 1);
        match client.request(Request::StateGet { key: key.clone(), fresh: true }, None, Some(LIMIT))? {
            Answer::Key(found) if Some(&found.value) == self.acknowledged.get(&key) => {
                self.say(format!("{key} = {} (version {})", found.value, found.version));
                Ok(())
            }
            Answer::Key(found) => Err(failed(format!("{key} was read as {}", found.value))),
            other => Err(unexpected(&other)),
        }
    }

    fn plugin(&self, client: &mut Client) -> Result<i64, Failure> {
        let path = library::find("counter")?;
        let begin = Instant::now();
        let document = load_in(client, &path, |load| load, LIMIT)?;
        for result in &document.results {
            self.say(format!("{}: {} {}", result.member, result.result, result.reason).trim_end());
        }
        if document.outcome != "committed" {
            return Err(failed(format!("the load was {}", document.outcome)));
        }
        self.say(format!("committed at index {} after {:.0} ms", document.receipt.index, ms(begin)));
        self.count(client, 0)
    }

    fn count(&self, client: &mut Client, before: i64) -> Result<i64, Failure> {
        let mut value = before;
        for add in [40, 2] {
            let found = call(client, json!({ "add": add }))?;
            value += add;
            if found != value {
                return Err(failed(format!("the counter says {found}, and {value} is right")));
            }
        }
        self.say(format!("counter: {before} + 40 + 2 = {value}"));
        Ok(value)
    }

    fn kill(&self, fleet: &mut Fleet) -> Result<(), Failure> {
        // Not the one that the client talks to first, so that it is seen how the ring closes.
        let victim = fleet.started.remove(2);
        let before = status(&mut fleet.client()?, Some(LIMIT))?;
        let (begin, mut seen) = kill_and_watch(fleet.place(), &victim.member, victim.pid)?;
        self.ring(&before, Some(&victim.member));
        seen.sort_by_key(|seen| seen.at);
        for seen in &seen {
            let ms = (seen.at - begin).as_secs_f64() * 1e3;
            self.say(format!(
                "{} knows after {ms:.1} ms: {} failed ({})",
                seen.member, victim.member, seen.cause
            ));
        }
        if seen.len() != KERNELS - 1 {
            return Err(failed(format!("{} of {} survivors told it", seen.len(), KERNELS - 1)));
        }
        Ok(())
    }

    fn grow(&self, fleet: &mut Fleet, client: &mut Client) -> Result<(), Failure> {
        let now = status(client, Some(LIMIT))?;
        let names = free_names(&now, fleet.place(), 1)?;
        let begin = Instant::now();
        fleet.grow(&names, &|| ())?;
        if let Some(refused) = fleet.failed.first() {
            return Err(refused.failure());
        }
        self.say(format!("{} is a member after {:.0} ms", names[0], ms(begin)));
        self.ring(&fleet.status, None);
        Ok(())
    }

    fn verify(&self, client: &mut Client, expected: i64) -> Result<(), Failure> {
        let comparison = compare(client, Some(LIMIT))?;
        for member in &comparison.members {
            let short = |hash: &str| hash.chars().take(12).collect::<String>();
            self.say(format!(
                "{}: history {} state {} at index {}",
                member.member,
                short(&member.history_hash),
                short(&member.state_hash),
                member.index
            ));
        }
        if !comparison.agree || comparison.members.len() != KERNELS {
            return Err(failed("the members' histories differ"));
        }
        let request = Request::StateList { prefix: "demo/".into(), after: None };
        let held: BTreeMap<_, _> = match client.request(request, None, Some(LIMIT))? {
            Answer::Keys(keys) => keys.into_iter().map(|key| (key.key, key.value)).collect(),
            other => return Err(unexpected(&other)),
        };
        if let Some((key, _)) = self.acknowledged.iter().find(|(key, value)| held.get(*key) != Some(value)) {
            return Err(failed(format!("{key} was acknowledged and is lost")));
        }
        self.say(format!("{} acknowledged writes, all there", self.acknowledged.len()));
        let found = call(client, json!({ "get": true }))?;
        if found != expected {
            return Err(failed(format!("the counter says {found}, and {expected} is right")));
        }
        self.say(format!("counter: {found}"));
        Ok(())
    }

    fn halt(&self, fleet: &Fleet, client: Client) -> Result<(), Failure> {
        let kernels = kernels(fleet.place());
        drop(client);
        let begin = Instant::now();
        keeper::halt(fleet.place());
        if let Some((member, pid)) = kernels.iter().find(|(_, pid)| lives(*pid)) {
            return Err(failed(format!("the kernel of {member} (process {pid}) is still there")));
        }
        self.say(format!("{} ended in {:.0} ms", count(kernels.len(), "kernel"), ms(begin)));
        Ok(())
    }

    fn begin(&mut self, stage: &'static str, text: String) {
        self.step += 1;
        self.stage = stage;
        if !self.silent {
            self.out.line(format!("\n\x1b[1m{}. {text}\x1b[0m", self.step));
        }
    }

    fn say(&self, text: impl AsRef<str>) {
        if !self.silent {
            self.out.line(format!("   {}", text.as_ref()));
        }
    }

    fn ring(&self, status: &Status, dead: Option<&str>) {
        let names: Vec<_> = status.members.iter().map(|member| member.name.as_str()).collect();
        for line in picture::ring(&names, dead) {
            self.say(line);
        }
    }
}

fn call(client: &mut Client, command: Value) -> Result<i64, Failure> {
    let request = Request::Call { plugin: "counter".into(), command, query: false, fresh: false };
    match client.request(request, None, Some(LIMIT))? {
        Answer::Reply { reply: Ok(reply), .. } => reply["value"]
            .as_i64()
            .ok_or_else(|| failed(format!("the counter replied {reply}, which has no value"))),
        Answer::Reply { reply: Err(error), .. } => Err(failed(format!("the counter refused: {error}"))),
        other => Err(unexpected(&other)),
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
