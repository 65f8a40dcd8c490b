//! An instance's side of its host's services: what may be asked at this moment, how long it may take, and the way there.
//!
//! A question goes over a connection to the kernel's socket, opened when it is needed and kept for the next one. A
//! question from a callback is answered before the callback's own deadline ends the instance.

use crate::client::{Client, Target};
use crate::local::{Answer, Failure, Request};
use crate::service::{ANSWER_MS, ASKS_MAX, Ask, Moment, refusal};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that a thread of a plug-in's own may wait for a reply.
const CALL_MAX: Duration = Duration::from_secs(3_600);

thread_local! {
    /// The callback that this thread is in, and since when.
    static DURING: Cell<Option<(Moment, Instant)>> = const { Cell::new(None) };
}

/// Runs a callback, so that what it asks is known to come from it.
pub fn during<R>(moment: Moment, callback: impl FnOnce() -> R) -> R {
    let before = DURING.replace(Some((moment, Instant::now())));
    let result = callback();
    DURING.set(before);
    result
}

/// What an instance asks with, from any of its threads.
#[derive(Debug)]
pub struct Asker {
    target: Target,
    desk: u64,
    plugin: String,
    deadline_ms: u64,
    /// Connections that nobody uses at present.
    idle: Mutex<Vec<Client>>,
    asking: AtomicUsize,
}

impl Asker {
    /// For the instance of `plugin` that has this desk at the kernel of `target`, whose callbacks may take so long.
    #[must_use]
    pub fn new(target: Target, desk: u64, plugin: String, deadline_ms: u64) -> Self {
        Self { target, desk, plugin, deadline_ms, idle: Mutex::default(), asking: AtomicUsize::new(0) }
    }

    /// Asks; both sides are MessagePack.
    ///
    /// # Errors
    /// Why there is no answer, in words for people.
    pub fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let ask: Ask = rmp_serde::from_slice(request)
            .map_err(|error| format!("this kernel does not know what is asked: {error}"))?;
        let during = DURING.get();
        let moment = during.map_or(Moment::Thread, |(moment, _)| moment);
        if let Some(why) = refusal(moment, &ask, &self.plugin) {
            return Err(why);
        }
        let limit = self.limit(&ask, during.map(|(_, since)| since));
        if self.asking.fetch_add(1, Ordering::Relaxed) >= ASKS_MAX {
            self.asking.fetch_sub(1, Ordering::Relaxed);
            return Err(format!(
                "{ASKS_MAX} questions of this instance wait for answers already; wait for one"
            ));
        }
        let answer = self.exchange(ask, limit);
        self.asking.fetch_sub(1, Ordering::Relaxed);
        rmp_serde::to_vec_named(&answer?).map_err(|error| error.to_string())
    }

    /// A callback's question takes four fifths of what the callback may, so that there is time to act on the answer.
    fn limit(&self, ask: &Ask, since: Option<Instant>) -> Duration {
        let asked = match ask {
            Ask::Call { timeout_ms: Some(ms), .. } => Duration::from_millis(*ms).min(CALL_MAX),
            _ => Duration::from_millis(ANSWER_MS),
        };
        let left = since.map(|since| {
            let most = Duration::from_millis(self.deadline_ms.saturating_mul(4) / 5);
            most.saturating_sub(since.elapsed())
        });
        asked.min(left.unwrap_or(asked)).max(Duration::from_millis(1))
    }

    fn exchange(&self, ask: Ask, limit: Duration) -> Result<serde_json::Value, String> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut client = match idle {
            Some(client) => client,
            None => self.connect(limit)?,
        };
        let request = Request::Service { desk: self.desk, ask };
        let answer = client.request(request, None, Some(limit));
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        match answer {
            Ok(Answer::Service(answer)) => Ok(answer),
            Ok(_) => Err("the kernel's answer fits no service".into()),
            Err(failure) => Err(words(&failure)),
        }
    }

    fn connect(&self, limit: Duration) -> Result<Client, String> {
        let mut target = self.target.clone();
        target.reach = target.reach.min(limit);
        Client::connect(target).map_err(|failure| words(&failure))
    }
}

fn words(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    for more in [&failure.cause, &failure.hint].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(more);
    }
    text
}
