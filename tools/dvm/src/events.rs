//! `events`: the one history as it is told to everybody.

use crate::context::Context;
use crate::exit;
use crate::table::{pairs, plain};
use clap::Args;
use dvm_plugin_api::client::{End, Filter, KINDS, Next};
use dvm_plugin_api::local::{EventDoc, Since};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a kernel of a lost DVM is waited for.
const LOST: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with new ones
    #[arg(short, long)]
    follow: bool,
    /// Begin here: an index, a cursor, now or all
    #[arg(long, value_name = "INDEX|CURSOR|now|all", value_parser = Since::from_str)]
    since: Option<Since>,
    /// Only kinds that begin so; repeat
    #[arg(long = "kind", value_name = "PREFIX", value_parser = kind)]
    kinds: Vec<String>,
}

/// A prefix that begins no kind is a slip, and would be waited for in vain.
fn kind(prefix: &str) -> Result<String, String> {
    if KINDS.iter().any(|(kind, _)| kind.starts_with(prefix)) {
        return Ok(prefix.into());
    }
    let kinds: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
    Err(format!("no kind of event begins so; there are {}", kinds.join(", ")))
}

pub(crate) fn events(context: &Context, args: EventsArgs) -> exit::Result {
    let since = args.since.unwrap_or(if args.follow { Since::Now } else { Since::All });
    follow(context, since, Filter { kinds: args.kinds, follow: args.follow, key_prefix: None })
}

/// Prints events until they end.
pub(crate) fn follow(context: &Context, since: Since, filter: Filter) -> exit::Result {
    let mut events = context.events(since, filter)?;
    let mut lost: Option<Instant> = None;
    loop {
        // While detached it is looked at now and then whether the DVM is lost.
        let patience = lost.map(|_| Duration::from_millis(100));
        match events.next(patience)? {
            Next::Event(event) => {
                lost = (event.kind == "detached").then(Instant::now);
                context.out.tell(&Bare(&event), || text(&event));
            }
            Next::End(End::Halt | End::Kept) => return Ok(exit::OK),
            Next::Quiet if events.through().is_some() => lost = None,
            Next::Quiet if lost.is_some_and(|since| since.elapsed() > LOST) => {
                context.out.note("the DVM is lost: no kernel of it lives on this host");
                return Ok(exit::NO_DVM);
            }
            Next::Quiet => {}
        }
    }
}

/// An event without its `schema`, which every document gets.
struct Bare<'a>(&'a EventDoc);

impl serde::Serialize for Bare<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let EventDoc { schema: _, index, view, epoch, label, lineage, cursor, time, kind, more } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("index", index)?;
        map.serialize_entry("view", view)?;
        map.serialize_entry("epoch", epoch)?;
        map.serialize_entry("label", label)?;
        map.serialize_entry("lineage", lineage)?;
        map.serialize_entry("cursor", cursor)?;
        map.serialize_entry("time", time)?;
        map.serialize_entry("kind", kind)?;
        for (key, value) in more {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// An event as a line for eyes.
pub(crate) fn text(event: &EventDoc) -> String {
    let index = event.index.map_or_else(|| "-".into(), |index| index.to_string());
    let clock = event.time.split_once('T').map_or(event.time.as_str(), |(_, clock)| clock);
    let more = pairs(event.more.iter().map(|(key, value)| (key, plain(value))));
    let label = if event.label == "confirmed" { String::new() } else { format!("({}) ", event.label) };
    format!("{index:>6}  {clock}  {label}\x1b[1m{}\x1b[0m  {more}", event.kind)
}
