//! `list`, `status`, `members`, `plugins`: what is, without ordering anything.

use crate::context::{Context, status};
use crate::exit;
use crate::table::{Rows, count, or_dash, pairs, plain};
use dvm_plugin_api::local::{DepartedDoc, MemberDoc, PluginDoc, Status};
use dvm_plugin_api::place::{self, RuntimeDir};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How many of those who are gone are printed, the latest.
const GONE: usize = 5;

/// Why a label is what it is, and what to do about it.
const PROVISIONAL: &str = "provisional: this side went on without a majority of the last confirmed view, so others may go on \
                           elsewhere; if they do not, `dvm promote` ends it";

/// A DVM on this host.
#[derive(Serialize)]
struct Listed {
    name: String,
    uri: String,
    state: &'static str,
    /// Members whose kernels live on this host.
    members: Vec<String>,
    logs: PathBuf,
}

pub(crate) fn list(context: &Context) -> exit::Result {
    let runtime = RuntimeDir::open()?;
    let path = RuntimeDir::default_path();
    let mut listed = BTreeMap::new();
    for place in runtime.map(|runtime| runtime.dvms()).transpose()?.unwrap_or_default() {
        let members = place.live_members();
        let state = if members.is_empty() { "dead" } else { "live" };
        let name = place.name();
        let entry =
            Listed { logs: place::log_dir(&name), uri: place.uri(), name: name.clone(), state, members };
        listed.insert(name, entry);
    }
    // Of those that ended, logs may be all that is left.
    for (name, logs) in place::logged() {
        listed.entry(name.clone()).or_insert_with(|| Listed {
            uri: format!("unix:{}", path.join(&name).display()),
            name,
            state: "dead",
            members: Vec::new(),
            logs,
        });
    }
    let listed: Vec<_> = listed.into_values().collect();
    context.out.tell(&json!({ "dvms": listed }), || {
        if listed.is_empty() {
            return "no DVM on this host; start one with `dvm up`".into();
        }
        let mut rows = Rows::new(&["name", "state", "members here", "uri", "logs"]);
        for Listed { name, uri, state, members, logs } in &listed {
            rows.push([
                name.clone(),
                (*state).into(),
                members.join(","),
                uri.clone(),
                logs.display().to_string(),
            ]);
        }
        rows.text()
    });
    Ok(exit::OK)
}

pub(crate) fn status_command(context: &Context) -> exit::Result {
    let status = ask(context)?;
    context.out.tell(&status, || text(&status));
    Ok(exit::OK)
}

pub(crate) fn members(context: &Context) -> exit::Result {
    let status = ask(context)?;
    context.out.tell(&json!({ "members": status.members }), || member_rows(&status.members).text());
    Ok(exit::OK)
}

pub(crate) fn plugins(context: &Context) -> exit::Result {
    let status = ask(context)?;
    context.out.tell(&json!({ "plugins": status.plugins }), || {
        if status.plugins.is_empty() {
            "no plug-in is loaded".into()
        } else {
            plugin_rows(&status.plugins).text()
        }
    });
    Ok(exit::OK)
}

fn ask(context: &Context) -> Result<Status, dvm_plugin_api::local::Failure> {
    status(&mut context.client()?, context.timeout())
}

fn text(status: &Status) -> String {
    let Status { dvm, view, index, through, members, departed, plugins, transactions, .. } = status;
    let Status { resident, quarantined, .. } = status;
    let mut text = vec![
        format!("DVM `{}`  {}", dvm.name, dvm.uri),
        format!(
            "view {} ({}, {}), {}, index {index}, seen by {through}",
            view.id,
            view.label,
            view.phase,
            count(view.size, "member")
        ),
    ];
    if !view.waiting_for.is_empty() {
        text.push(format!("waiting for {}", view.waiting_for.join(", ")));
    }
    if view.label == "provisional" {
        text.push(PROVISIONAL.into());
    }
    text.push(String::new());
    text.push(member_rows(members).text());
    if !departed.is_empty() {
        text.push(String::new());
        text.extend(gone(departed));
    }
    if !plugins.is_empty() {
        text.push(String::new());
        text.push(plugin_rows(plugins).text());
    }
    if !transactions.is_empty() {
        text.push(String::new());
        text.extend(transactions.iter().map(|open| {
            format!(
                "open: {} {} {} since {} ms, {}, waiting for {}",
                open.id,
                open.kind,
                open.plugin,
                open.since_ms,
                open.phase,
                open.waiting_for.join(", ")
            )
        }));
    }
    if !resident.is_empty() || !quarantined.is_empty() {
        text.push(String::new());
        text.extend(resident.iter().map(|image| {
            format!("resident in {through}: {} ({}), opened {}", image.plugin, image.hash, image.opened)
        }));
        text.extend(quarantined.iter().map(|thread| {
            format!("quarantined in {through}: a thread of {} for {} ms", thread.plugin, thread.since_ms)
        }));
    }
    text.join("\n")
}

/// The latest of those who are gone, and how many there were before them.
fn gone(departed: &[DepartedDoc]) -> Vec<String> {
    let earlier = departed.len().saturating_sub(GONE);
    let one = |gone: &DepartedDoc| {
        format!("gone: {} ({}) at index {}, {}", gone.member, gone.cause, gone.index, gone.time)
    };
    let mut lines: Vec<_> = departed[earlier..].iter().map(one).collect();
    if earlier > 0 {
        lines.push(format!("and {earlier} more before them: --json"));
    }
    lines
}

fn member_rows(members: &[MemberDoc]) -> Rows {
    let mut rows =
        Rows::new(&["member", "rank", "state", "host", "address", "pid", "index", "heard", "tags"]);
    for member in members {
        rows.push([
            member.name.clone(),
            member.rank.to_string(),
            member.state.clone(),
            member.host.clone(),
            member.address.clone(),
            member.pid.to_string(),
            member.index.to_string(),
            member.last_heard_ms.map_or_else(|| "-".into(), |ms| format!("{ms} ms")),
            pairs(member.tags.iter().map(|(key, value)| (key, value.clone()))),
        ]);
    }
    rows
}

fn plugin_rows(plugins: &[PluginDoc]) -> Rows {
    let mut rows =
        Rows::new(&["plug-in", "version", "mode", "state", "primary", "instances", "restarts", "failures"]);
    for plugin in plugins {
        let running = plugin.instances.iter().filter(|instance| instance.state == "running").count();
        rows.push([
            plugin.name.clone(),
            plugin.version.clone(),
            plugin.mode.clone(),
            plugin.state.clone(),
            or_dash(plugin.primary.as_ref()),
            format!("{running}/{}", plugin.wanted.max(plugin.instances.len())),
            plugin.restarts.to_string(),
            plugin.failures.to_string(),
        ]);
    }
    rows
}

/// A hash; none of what is no library, which an application is not.
fn hash(hash: &str) -> &str {
    if hash.bytes().all(|digit| digit == b'0') { "-" } else { hash }
}

/// One plug-in with its instances and configuration.
pub(crate) fn plugin_text(plugin: &PluginDoc) -> String {
    let mut rows = Rows::new(&["member", "rank", "role", "state", "placement", "pid", "applied"]);
    for instance in &plugin.instances {
        rows.push([
            instance.member.clone(),
            instance.rank.to_string(),
            instance.role.clone(),
            instance.state.clone(),
            instance.placement.clone(),
            instance.pid.to_string(),
            or_dash(instance.applied),
        ]);
    }
    let config = pairs(plugin.config.iter().map(|(key, value)| (key, plain(value))));
    format!(
        "{} {} ({}, {})\nhash {}\nconfig {}\n\n{}",
        plugin.name,
        plugin.version,
        plugin.mode,
        plugin.state,
        hash(&plugin.hash),
        if config.is_empty() { "-" } else { &config },
        rows.text()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departed(count: u64) -> Vec<DepartedDoc> {
        let one = |index| DepartedDoc {
            member: format!("k{index}"),
            id: String::new(),
            host: "here".into(),
            cause: "left".into(),
            index,
            time: "now".into(),
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn the_latest_who_are_gone_are_printed_and_the_others_counted() {
        let lines = gone(&departed(33));
        assert_eq!(lines.len(), GONE + 1, "{lines:?}");
        assert_eq!(lines[0], "gone: k28 (left) at index 28, now");
        assert_eq!(lines[GONE], "and 28 more before them: --json");
        assert_eq!(gone(&departed(5)).len(), 5);
        assert_eq!(gone(&[]), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_library_has_no_hash() {
        assert_eq!((hash(&"0".repeat(64)), hash("00ab")), ("-", "00ab"));
    }
}
