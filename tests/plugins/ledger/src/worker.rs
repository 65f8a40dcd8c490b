//! Effects one after another, on a thread of their own, and the marks that they are done.

use crate::file;
use dvm_plugin_api::client::{Client, Target};
use dvm_plugin_api::local::{Answer, Failure, Request};
use dvm_plugin_api::{Error, Host, Result};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Orders that may wait.
const WAITING: usize = 64 << 10;
/// How often it is looked whether this instance may act again.
const LOOK: Duration = Duration::from_millis(5);
/// How long marking may take; what was not marked is marked later.
const MARK: Duration = Duration::from_secs(1);
/// Marks in one command: so many wait while there is work.
const MARKS: usize = 32;
/// Under which name the tests load the plug-in.
const NAME: &str = "ledger";

enum Order {
    Make(u64, String),
    Forget,
}

/// The thread, from outside.
pub(crate) struct Worker {
    orders: SyncSender<Order>,
}

impl Worker {
    /// Starts it; it ends when this is dropped.
    pub(crate) fn start(host: Host, file: PathBuf, think: Duration) -> Result<Self> {
        let (orders, given) = sync_channel(WAITING);
        let (due, done) = Default::default();
        let mut desk = Desk { host, file, think, due, done, client: None };
        thread::Builder::new().name("effects".into()).spawn(move || desk.work(&given)).map_err(Error::new)?;
        Ok(Self { orders })
    }

    /// The effect of the command at this index is to be made.
    pub(crate) fn make(&self, index: u64, word: String) {
        self.order(Order::Make(index, word));
    }

    /// Somebody else makes what is left.
    pub(crate) fn forget(&self) {
        self.order(Order::Forget);
    }

    fn order(&self, order: Order) {
        // An instance that cannot keep up fails, and begins anew with what is not done.
        self.orders.try_send(order).expect("the worker lives and keeps up");
    }
}

struct Desk {
    host: Host,
    file: PathBuf,
    think: Duration,
    due: BTreeMap<u64, String>,
    /// Made, and not marked.
    done: BTreeSet<u64>,
    client: Option<Client>,
}

impl Desk {
    fn work(&mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(LOOK) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            orders.try_iter().for_each(|order| self.take(order));
            if let Some((index, word)) = self.due.first_key_value()
                && let Some(fence) = self.host.token()
            {
                thread::sleep(self.think);
                match file::append(&self.file, fence, *index, word) {
                    Ok(true) => {
                        self.done.insert(*index);
                        self.due.pop_first();
                    }
                    Ok(false) => self.host.log(format!("fence {fence} is refused")),
                    Err(error) => self.host.log(format!("{}: {error}", self.file.display())),
                }
            }
            // While there is work, marks wait until there are many.
            let many = self.done.len() >= MARKS || self.due.is_empty() && !self.done.is_empty();
            if many && let Err(failure) = self.mark() {
                self.client = None;
                self.host.log(format!("not marked yet: {failure}"));
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Make(index, word) => drop(self.due.insert(index, word)),
            Order::Forget => self.due.clear(),
        }
    }

    fn mark(&mut self) -> std::result::Result<(), Failure> {
        let marks: Vec<u64> = self.done.iter().copied().take(MARKS).collect();
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect(Target { reach: MARK, ..Target::find(None, NAME)? })?),
        };
        let command = json!({"done": marks});
        let request = Request::Call { plugin: NAME.into(), command, query: false, fresh: false };
        if let Answer::Reply { reply: Ok(_), .. } = client.request(request, None, Some(MARK))? {
            self.done.retain(|index| !marks.contains(index));
        }
        Ok(())
    }
}
