//! `history`: the entries, and whether all members hold the same.

use crate::context::{Context, unexpected};
use crate::exit::{self, failed, usage};
use crate::table::{Rows, count, plain};
use clap::{Args, Subcommand};
use dvm_plugin_api::client::{Client, REACH};
use dvm_plugin_api::local::{Answer, Failure, FailureCode, HistoryEntry, Request, VerifyMember};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct HistoryArgs {
    #[command(subcommand)]
    verify: Option<HistoryCommand>,
    /// First index
    #[arg(long, value_name = "I")]
    from: Option<u64>,
    /// Last index
    #[arg(long, value_name = "J")]
    to: Option<u64>,
    /// Only of this transaction
    #[arg(long, value_name = "ID")]
    transaction: Option<String>,
    /// What lost branches did: the orphan journals of this host, readable when no kernel lives
    #[arg(long, conflicts_with_all = ["from", "to", "transaction"])]
    orphans: bool,
}

#[derive(Debug, Subcommand)]
enum HistoryCommand {
    /// Ask every member and compare hashes
    Verify,
}

pub(crate) fn history(context: &Context, args: HistoryArgs) -> exit::Result {
    if args.orphans {
        return orphans(context);
    }
    let mut client = context.client()?;
    if args.verify.is_some() {
        return verify(context, &mut client);
    }
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from > to
    {
        return Err(usage(format!("--from {from} comes after --to {to}")));
    }
    let mut entries: Vec<HistoryEntry> = Vec::new();
    let mut from = args.from;
    loop {
        let request = Request::History { from, to: args.to, transaction: args.transaction.clone() };
        match context.ask(&mut client, request)? {
            Answer::History(more) => {
                // Without a first index it is the latest that one answer holds.
                let end = from.is_none() || more.is_empty();
                from = more.last().map(|last| last.index + 1);
                entries.extend(more);
                if end {
                    break;
                }
            }
            other => return Err(unexpected(&other)),
        }
    }
    if let Some(id) = args.transaction.filter(|_| entries.is_empty()) {
        return Err(Failure::new(FailureCode::NotFound, format!("no entry of a transaction `{id}` is kept"))
            .cause("it was never ordered, its end is not here yet, or it is too long ago")
            .hint("an id looks like t42b9bc4bd8b2.2; `dvm history` prints what is kept"));
    }
    context.out.tell(&json!({ "entries": entries }), || {
        let mut rows = Rows::new(&["index", "view", "label", "origin", "kind", "detail"]);
        for entry in &entries {
            rows.push([
                entry.index.to_string(),
                entry.view.clone(),
                entry.label.clone(),
                entry.origin.clone(),
                entry.kind.clone(),
                shorten(plain(&entry.detail)),
            ]);
        }
        rows.text()
    });
    Ok(exit::OK)
}

/// The orphan journals in the directory of the DVM's logs: `MEMBER.orphans-FORK-TIME.jsonl`, a head and a line an entry.
fn orphans(context: &Context) -> exit::Result {
    let directory = crate::logs::directory(context)?;
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    paths.retain(|path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.contains(".orphans-") && name.ends_with(".jsonl")
    });
    paths.sort();
    let mut journals = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path)
            .map_err(|error| failed(format!("cannot read {}: {error}", path.display())))?;
        let mut lines = text.lines().map(serde_json::from_str::<Value>);
        let head = lines.next().and_then(Result::ok);
        let entries: Result<Vec<_>, _> = lines.collect();
        let (Some(Value::Object(mut head)), Ok(entries)) = (head, entries) else {
            return Err(failed(format!("{} is no orphan journal", path.display())));
        };
        head.insert("journal".into(), json!(path));
        head.insert("entries".into(), json!(entries));
        journals.push(Value::Object(head));
    }
    context.out.tell(&json!({ "journals": journals }), || {
        let mut rows = Rows::new(&["member", "fork", "index", "origin", "kind", "detail"]);
        for journal in &journals {
            for entry in journal["entries"].as_array().into_iter().flatten() {
                let detail = shorten(plain(&entry["detail"]));
                let cell = |value: &Value| plain(value);
                rows.push([
                    cell(&journal["member"]),
                    cell(&journal["fork_index"]),
                    cell(&entry["index"]),
                    cell(&entry["origin"]),
                    cell(&entry["kind"]),
                    detail,
                ]);
            }
        }
        format!("{}\n{} in {}", rows.text(), count(journals.len(), "journal"), directory.display())
    });
    Ok(exit::OK)
}

/// What comparing all members' hashes gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// Whether all members answered, and said the same.
    pub(crate) agree: bool,
    pub(crate) through_index: u64,
    pub(crate) members: Vec<VerifyMember>,
}

/// Asks every member.
pub(crate) fn compare(client: &mut Client, timeout: Option<Duration>) -> Result<Comparison, Failure> {
    match client.request(Request::Verify, None, timeout)? {
        Answer::Verify { through_index, members } => {
            Ok(Comparison { agree: agree(through_index, &members), through_index, members })
        }
        other => Err(unexpected(&other)),
    }
}

fn verify(context: &Context, client: &mut Client) -> exit::Result {
    let comparison = compare(client, Some(context.global.timeout.unwrap_or(REACH)))?;
    let Comparison { agree, through_index, members } = &comparison;
    context.out.tell(&comparison, || {
        let mut rows = Rows::new(&["member", "index", "history", "state"]);
        for member in members {
            let short = |hash: &str| hash.chars().take(16).collect::<String>();
            rows.push([
                member.member.clone(),
                member.index.to_string(),
                short(&member.history_hash),
                short(&member.state_hash),
            ]);
        }
        let word = if *agree { "agree" } else { "do NOT agree" };
        format!("{}\n{} {word} through index {through_index}", rows.text(), count(members.len(), "member"))
    });
    Ok(if *agree { exit::OK } else { exit::FAILURE })
}

fn agree(through_index: u64, members: &[VerifyMember]) -> bool {
    let same = |a: &VerifyMember, b: &VerifyMember| {
        (a.index, &a.history_hash, &a.state_hash) == (b.index, &b.history_hash, &b.state_hash)
    };
    !members.is_empty()
        && members.iter().all(|member| member.index == through_index)
        && members.windows(2).all(|pair| same(&pair[0], &pair[1]))
}

fn shorten(text: String) -> String {
    const WIDTH: usize = 100;
    if text.chars().count() <= WIDTH { text } else { text.chars().take(WIDTH - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_all_the_same_at_one_index() {
        let member = |index, hash: &str| VerifyMember {
            member: "k0".into(),
            index,
            history_hash: hash.into(),
            state_hash: "s".into(),
        };
        assert!(agree(7, &[member(7, "a"), member(7, "a")]));
        assert!(!agree(7, &[member(7, "a"), member(7, "b")]));
        assert!(!agree(7, &[member(7, "a"), member(0, "")]));
        assert!(!agree(7, &[]));
    }
}
