//! `exec`: a command on members, by the plug-in `jobs`.

use crate::context::{Context, status, unexpected};
use crate::exit::{self, failed};
use crate::keeper::{Duty, Keeper};
use crate::library;
use crate::plugin::load_in;
use crate::selector::select;
use clap::Args;
use dvm_plugin_api::client::{Client, REACH};
use dvm_plugin_api::local::{Answer, Failure, FailureCode, Load, Request, Status};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The plug-in.
const JOBS: &str = "jobs";

/// Instances of it, where there are as many members: one that acts, and two that may.
const INSTANCES: usize = 3;

/// Pause between two looks at the job; it grows.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(200);

/// How long a job that was taken may be unknown to the instance that is asked, which may lag.
const LAG: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Members it runs on: names, k[0-3], tag=value, rank:N; repeat or separate by commas; default: all
    #[arg(long, value_name = "SELECTOR")]
    on: Vec<String>,
    /// Where it starts; default: the directory that this command is given in
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Set in its environment: NAME=VALUE; repeat
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

pub(crate) fn exec(context: &Context, args: ExecArgs) -> exit::Result {
    let deadline = context.global.timeout.map(|timeout| Instant::now() + timeout);
    let mut client = context.client()?;
    let now = status(&mut client, context.timeout())?;
    let on = match args.on.is_empty() {
        true => now.members.iter().map(|member| member.name.clone()).collect(),
        false => select(&args.on, &now.members)?,
    };
    ready(context, &mut client, &now)?;
    let here = std::env::current_dir().map(|path| path.to_string_lossy().into_owned());
    let cwd = args.cwd.or(here.ok());
    let env: Value = args
        .env
        .into_iter()
        .map(|(name, value)| (name, Value::from(value)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let order = json!({"argv": args.command, "on": on, "cwd": cwd, "env": env});
    // However this command ends, the job ends with it.
    let mut keeper = Keeper::start(&Duty::Cancel(client.target().place.directory().into()))?;
    let timeout = context.timeout_agreed(&mut client)?;
    let taken = ask(&mut client, json!({"submit": order}), false, timeout)?.map_err(failed)?;
    let job = taken["job"]
        .as_u64()
        .ok_or_else(|| failed("the plug-in `jobs` is another than this command knows"))?;
    keeper.tell(&job.to_string())?;
    context.out.detail(format!("job {job} on {}", on.join(", ")));
    let over = watch(context, &mut client, job, deadline)?;
    drop(keeper);
    let code = over["exit"].as_i64().unwrap_or(1);
    if context.out.is_json() {
        context.out.document(&json!({"job": job, "exit": code, "tasks": over["tasks"]}));
    }
    Ok(u8::try_from(code).unwrap_or(exit::FAILURE))
}

/// Loads the plug-in if nobody has.
fn ready(context: &Context, client: &mut Client, now: &Status) -> Result<(), Failure> {
    if let Some(loaded) = now.plugins.iter().find(|plugin| plugin.name == JOBS) {
        return match loaded.mode.as_str() {
            "parallel" => Err(Failure::new(
                FailureCode::Failure,
                "the plug-in `jobs` is loaded without a primary, and runs nothing",
            )
            .hint("dvm plugin unload jobs, then dvm plugin load jobs --mode hot --instances 3")),
            _ => Ok(()),
        };
    }
    let path = library::find(JOBS).map_err(|failure| {
        Failure::new(failure.code, "the plug-in `jobs`, which runs commands, is not loaded, and its library is not here")
            .cause(failure.cause.unwrap_or(failure.message))
            .hint("set DVM_PLUGIN_PATH to where libjobs.so is, or load it: dvm plugin load PATH/libjobs.so --mode hot")
    })?;
    let instances = u16::try_from(now.members.len().clamp(1, INSTANCES)).unwrap_or(1);
    let timeout = context.timeout_agreed(client)?.unwrap_or(REACH);
    let document = load_in(
        client,
        &path,
        |load| Load { mode: "hot".into(), instances: Some(instances), ..load },
        timeout,
    )?;
    if document.outcome == "committed" {
        context.out.detail(format!("{} is loaded", path.display()));
        return Ok(());
    }
    // Somebody else may have been faster.
    let again = status(client, context.timeout())?;
    if again.plugins.iter().any(|plugin| plugin.name == JOBS) {
        return Ok(());
    }
    let reasons: Vec<_> = document.results.iter().filter(|result| !result.reason.is_empty()).collect();
    let reasons: Vec<_> =
        reasons.iter().map(|result| format!("{}: {}", result.member, result.reason)).collect();
    Err(Failure::new(FailureCode::Rejected, "the plug-in `jobs`, which runs commands, could not be loaded")
        .cause(reasons.join("\n"))
        .hint("try `dvm plugin load jobs --mode hot`"))
}

/// Tells of each task when it is over, until all are; the job then.
fn watch(
    context: &Context,
    client: &mut Client,
    job: u64,
    deadline: Option<Instant>,
) -> Result<Value, Failure> {
    let (begun, mut told, mut pause) = (Instant::now(), Vec::new(), LOOK);
    loop {
        match ask(client, json!({"show": job}), true, Some(REACH))? {
            Ok(shown) => {
                let tasks = shown["tasks"].as_array().map(Vec::as_slice).unwrap_or_default();
                for (number, task) in tasks.iter().enumerate() {
                    if !task["exit"].is_null() && !told.contains(&number) {
                        told.push(number);
                        tell(context, task);
                        pause = LOOK;
                    }
                }
                if !shown["exit"].is_null() {
                    return Ok(shown);
                }
            }
            Err(_) if begun.elapsed() < LAG => {}
            Err(error) => return Err(failed(error)),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let text = format!("job {job} is not over in time, and is cancelled");
            return Err(Failure::new(FailureCode::Unknown, text).hint("a longer --timeout gives it time"));
        }
        sleep(pause);
        pause = (pause * 5 / 4).min(LOOK_MAX);
    }
}

/// Prints a task's output with its member's name, and how it ended if not well.
fn tell(context: &Context, task: &Value) {
    if context.out.is_json() {
        return;
    }
    let member = task["member"].as_str().unwrap_or("?");
    let lines = |stream: &str| {
        let tail = &task[stream];
        let before = tail["before"].as_u64().filter(|before| *before > 0);
        let note =
            before.map(|before| format!("{member}: ({before} bytes of {stream} before this are not kept)"));
        let text = tail["text"].as_str().unwrap_or_default().to_owned();
        let lines: Vec<_> = text.lines().map(|line| format!("{member}: {line}")).collect();
        (note, lines)
    };
    let (out, err) = (lines("stdout"), lines("stderr"));
    out.0.into_iter().for_each(|note| context.out.note(note));
    out.1.into_iter().for_each(|line| context.out.line(line));
    err.0.into_iter().for_each(|note| context.out.note(note));
    err.1.into_iter().for_each(|line| context.out.aside(line));
    let ended = match (&task["exit_code"], &task["signal"], &task["error"]) {
        (Value::Number(code), ..) if code.as_i64() != Some(0) => format!("exit code {code}"),
        (_, Value::String(signal), _) => format!("ended by {signal}"),
        (_, _, Value::String(error)) => error.clone(),
        _ => return,
    };
    context.out.note(format!("{member}: {ended}"));
}

/// One command or query to the plug-in: its reply, or its own error.
pub(crate) fn ask(
    client: &mut Client,
    command: Value,
    query: bool,
    timeout: Option<Duration>,
) -> Result<Result<Value, String>, Failure> {
    let request = Request::Call { plugin: JOBS.into(), command, query, fresh: false };
    match client.request(request, None, timeout)? {
        Answer::Reply { reply, .. } => Ok(reply),
        other => Err(unexpected(&other)),
    }
}
