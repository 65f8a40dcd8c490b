//! A stream of events that outlives the kernel it comes from.
//!
//! It goes on at another kernel of the DVM on this host, right after the last event. Where there is none it tells
//! `detached` once and tries again for as long as its caller asks for events. No event is told twice, none is missed:
//! what no kernel keeps any more is told as `overflow` by the kernel.

use super::connection::{Connection, With};
use super::{GRACE, Target};
use crate::local::{Answer, EventDoc, Failure, FailureCode, Request, Since};
use serde_json::Map;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Pause between two tries to find a kernel again.
const RETRY: Duration = Duration::from_millis(50);

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only kinds that begin with one of these; empty: all but `key-changed` and `member-suspected`.
    pub kinds: Vec<String>,
    /// Go on with new ones.
    pub follow: bool,
    /// Only `key-changed` of keys that begin with this.
    pub key_prefix: Option<String>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// An event; `detached` is one too.
    Event(Box<EventDoc>),
    /// Nothing within the time asked for.
    Quiet,
    /// The stream's end.
    End(End),
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The DVM ended in order.
    Halt,
    /// All that is kept was told, and new ones were not asked for.
    Kept,
}

/// A subscription.
#[derive(Debug)]
pub struct Events {
    target: Target,
    filter: Filter,
    /// Where to begin again: after the last event told.
    since: Since,
    /// The connection and the number of its subscription.
    attached: Option<(Connection, u64)>,
    /// The last event with an index, of which a repeat after a reattachment is dropped.
    last: Option<EventDoc>,
    /// `detached` was told, and no kernel found since.
    detached: bool,
    /// `halting` was told: a lost kernel means the end now.
    halting: bool,
}

impl Events {
    pub(super) fn open(target: Target, since: Since, filter: Filter) -> Result<Self, Failure> {
        let mut events =
            Self { target, filter, since, attached: None, last: None, detached: false, halting: false };
        events.attach()?;
        Ok(events)
    }

    /// The member whose kernel tells them; none while detached.
    #[must_use]
    pub fn through(&self) -> Option<&str> {
        self.attached.as_ref().map(|(connection, _)| connection.member.as_str())
    }

    /// Where another subscription would have to begin to go on from here.
    #[must_use]
    pub fn position(&self) -> &Since {
        &self.since
    }

    /// The next event; with a limit of time, [`Next::Quiet`] when it is up.
    ///
    /// # Errors
    /// What the kernel refuses the subscription with. A lost kernel is no error.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Next, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let Some((connection, id)) = &mut self.attached else {
                match self.attach() {
                    Ok(()) => continue,
                    Err(failure) if failure.code != FailureCode::NoDvm => return Err(failure),
                    Err(_) if self.halting => return Ok(Next::End(End::Halt)),
                    Err(_) if !self.detached => {
                        self.detached = true;
                        return Ok(Next::Event(Box::new(self.detached_event())));
                    }
                    Err(_) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                        return Ok(Next::Quiet);
                    }
                    Err(_) => {
                        sleep(RETRY);
                        continue;
                    }
                }
            };
            let id = *id;
            match connection.receive(deadline) {
                Ok(message) if message.id != id => {}
                Ok(message) => match message.answer {
                    Ok(Answer::Event(event)) => {
                        if self.note(&event) {
                            return Ok(Next::Event(event));
                        }
                    }
                    Ok(Answer::End { why }) if why == "halt" => return Ok(Next::End(End::Halt)),
                    Ok(Answer::End { why }) if why == "kept" => return Ok(Next::End(End::Kept)),
                    Err(failure) if failure.code != FailureCode::NoDvm => return Err(failure),
                    _ => self.attached = None,
                },
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Next::Quiet),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(Failure::new(FailureCode::Failure, "an event of the kernel makes no sense")
                        .cause(error.to_string()));
                }
                Err(_) => self.attached = None,
            }
        }
    }

    /// Connects and subscribes where the last subscription stopped.
    fn attach(&mut self) -> Result<(), Failure> {
        let mut connection = self.target.connect(&[])?;
        let deadline = Some(Instant::now() + self.target.reach + GRACE);
        let gone = |error: io::Error| {
            Failure::new(FailureCode::NoDvm, "the kernel was lost while subscribing").cause(error.to_string())
        };
        if self.filter.follow && self.since == Since::Now {
            // From here on the place is known, whichever kernel tells what follows.
            let id = connection.send(&Request::Status, With::default(), None, deadline).map_err(gone)?;
            loop {
                let message = connection.receive(deadline).map_err(gone)?;
                match message.answer? {
                    Answer::Status(status) if message.id == id => {
                        self.since = Since::Index(status.index);
                        break;
                    }
                    _ => {}
                }
            }
        }
        let request = Request::Subscribe {
            since: self.since.clone(),
            kinds: self.filter.kinds.clone(),
            follow: self.filter.follow,
            key_prefix: self.filter.key_prefix.clone(),
        };
        let id = connection.send(&request, With::default(), None, deadline).map_err(gone)?;
        self.attached = Some((connection, id));
        self.detached = false;
        Ok(())
    }

    /// Remembers an event's place; whether it is new.
    fn note(&mut self, event: &EventDoc) -> bool {
        self.halting |= event.kind == "halting";
        let Some(index) = event.index else { return true };
        if let Some(last) = &self.last
            && last.lineage == event.lineage
            && last.index >= Some(index)
        {
            return false;
        }
        self.since = Since::Cursor(event.cursor.clone());
        self.last = Some(event.clone());
        true
    }

    fn detached_event(&self) -> EventDoc {
        let last = self.last.as_ref();
        let text = |field: fn(&EventDoc) -> &String| last.map(field).cloned().unwrap_or_default();
        EventDoc {
            schema: 1,
            index: None,
            view: text(|last| &last.view),
            epoch: last.map(|last| last.epoch).unwrap_or_default(),
            label: text(|last| &last.label),
            lineage: text(|last| &last.lineage),
            cursor: text(|last| &last.cursor),
            time: rfc3339(SystemTime::now()),
            kind: "detached".into(),
            more: Map::new(),
        }
    }
}

/// A time as RFC 3339 in UTC, to the millisecond. Days to dates as in Howard Hinnant's `civil_from_days`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |seconds, millis| {
            rfc3339(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 5), "2000-02-29T00:00:00.005Z");
        assert_eq!(at(1_767_323_045, 678), "2026-01-02T03:04:05.678Z");
    }
}
