//! The scenarios' commands. A file is a row of blocks: comments and commands, `----`, what was told.
//!
//! | command | does |
//! |---|---|
//! | `config KEY=VALUE…`, `ring N` | makes a DVM of a, b, c, … |
//! | `trace KIND…` | these messages are told from now on; `untrace` ends it |
//! | `put NODE KEY=VALUE [session=S seq=N]`, `burst NODE COUNT` | requests to a member |
//! | `load NODE PLUGIN [RULE] [dry]`, `execute NODE ok\|fails\|never` | transactions, and how a node executes them |
//! | `wait TIME` | lets simulated time pass |
//! | `kill`, `poweroff`, `pause`, `resume NODE` | ends or stops processes |
//! | `doom NODE KIND [TO]` | a node is killed when it is about to send a message of this kind |
//! | `lose A B KIND` | control messages of this kind from a to b are lost |
//! | `cut A,B / C`, `oneway A B`, `heal` | the network |
//! | `hold A B`, `release`, `reset A B`, `stick A B [for-good]` | single ways and ring links |
//! | `join NODE via NODE [as NAME]`, `leave NODE`, `halt NODE`, `promote NODE` | membership |
//! | `show views\|histories\|keys\|plugins\|indices\|fences` | the state, a line for all who tell the same |

use super::{Execution, World};
use dvm_core::ids::TransactionId;
use dvm_core::state::{
    Change, LeaveBy, Mode, Payload, Placement, PluginSpec, Require, RestartPolicy, Stamp, Transaction,
    TransactionKind,
};
use dvm_core::{Config, Input};

/// Plays a file; the same file with what was told in the place of what was to be told.
pub fn play(text: &str) -> String {
    let mut world = World::new(Config::default());
    let mut blocks = Vec::new();
    for block in text.trim_end().split("\n\n") {
        let commands = block.split_once("----").map_or(block, |(commands, _)| commands).trim_end();
        for command in commands.lines().filter(|line| !line.starts_with('#')) {
            world.obey(command);
        }
        let told = std::mem::take(&mut world.told);
        blocks.push(format!("{commands}\n----\n{}", told.join("\n")).trim_end().to_owned());
    }
    blocks.join("\n\n") + "\n"
}

impl World {
    /// Carries out a command.
    ///
    /// # Panics
    /// If it is none.
    pub fn obey(&mut self, command: &str) {
        let words: Vec<_> = command.split_whitespace().collect();
        match words.as_slice() {
            ["config", settings @ ..] => {
                for (key, value) in settings.iter().filter_map(|setting| setting.split_once('=')) {
                    self.config.set(key, value).expect("settings are valid");
                }
            }
            ["ring", n] => self.ring(n.parse().expect("a number of members")),
            ["trace", kinds @ ..] => self.traced.extend(kinds.iter().map(|kind| (*kind).to_owned())),
            ["untrace"] => self.traced.clear(),
            ["put", node, pair, stamp @ ..] => {
                let (key, value) = pair.split_once('=').expect("KEY=VALUE");
                self.put(self.at(node), key, value, stamp_of(stamp));
            }
            ["burst", node, count] => {
                for n in 1..=count.parse().expect("a count") {
                    self.put(self.at(node), node, &format!("{n}"), None);
                }
            }
            ["load", node, plugin, wishes @ ..] => self.load(self.at(node), plugin, wishes),
            ["execute", node, how] => {
                let node = self.at(node);
                self.nodes[node].execution = match *how {
                    "ok" => Execution::Ok,
                    "fails" => Execution::Fails,
                    "never" => Execution::Never,
                    _ => panic!("nothing is executed like {how}"),
                };
            }
            ["wait", time] => self.run(microseconds(time)),
            ["kill", node] => self.kill(self.at(node), false),
            ["poweroff", node] => self.kill(self.at(node), true),
            ["pause", node] => self.pause(self.at(node)),
            ["resume", node] => self.resume(self.at(node)),
            ["doom", node, kind] => self.doom(self.at(node), kind, None),
            ["doom", node, kind, to] => self.doom(self.at(node), kind, Some(self.at(to))),
            ["lose", from, to, kind] => self.lose(self.at(from), self.at(to), kind),
            ["cut", here, "/", there] => {
                for (a, b) in here.split(',').flat_map(|a| there.split(',').map(move |b| (a, b))) {
                    self.close_way(self.at(a), self.at(b));
                    self.close_way(self.at(b), self.at(a));
                }
            }
            ["oneway", from, to] => self.close_way(self.at(from), self.at(to)),
            ["heal"] => self.heal(),
            ["hold", from, to] => self.hold(self.at(from), self.at(to)),
            ["release"] => self.release(),
            ["reset", from, to] => self.reset(self.at(from), self.at(to)),
            ["stick", from, to, rest @ ..] => {
                self.stick(self.at(from), self.at(to), rest.contains(&"for-good"));
            }
            ["join", node, "via", via, rest @ ..] => {
                let name = if let ["as", name] = rest { name } else { node };
                self.join(node, name, self.at(via));
            }
            ["leave", node] => self.offer(self.at(node), Input::Leave { by: LeaveBy::Term }),
            ["halt", node] => {
                self.ask(self.at(node), "halt", None, Change::Halt { by: (*node).into() });
            }
            ["promote", node] => {
                let node = self.at(node);
                let request = self.request(node, "promote");
                self.offer(node, Input::Promote { request, lineage: 8 });
            }
            ["show", what] => {
                let shown = self.show(what);
                self.told.extend(shown);
            }
            [] => {}
            _ => panic!("no command is `{command}`"),
        }
    }

    fn load(&mut self, node: usize, plugin: &str, wishes: &[&str]) {
        self.nodes[node].serial += 1;
        let id = TransactionId { originator: self.nodes[node].member.id(), serial: self.nodes[node].serial };
        let kind = TransactionKind::Load(Box::new(spec(plugin)));
        let require = wishes.iter().find_map(|wish| match wish.split_once(':') {
            Some(("at-least", k)) => Some(Require::AtLeast(k.parse().expect("a number"))),
            _ if *wish == "majority" => Some(Require::Majority),
            _ if *wish == "any" => Some(Require::Any),
            _ => None,
        });
        let (require, dry_run) = (require.unwrap_or_default(), wishes.contains(&"dry"));
        let transaction = Transaction { id, kind, require, dry_run };
        self.ask(node, &format!("load({plugin})"), None, Change::Transaction(Box::new(transaction)));
    }
}

fn stamp_of(words: &[&str]) -> Option<Stamp> {
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let (session, seq) = (value("session")?.to_owned(), value("seq")?.parse().expect("a number"));
    Some(Stamp { session, seq })
}

fn microseconds(time: &str) -> u64 {
    let (number, unit) = match time.strip_suffix("ms").or(time.strip_suffix("us")) {
        Some(number) => (number, if time.ends_with("ms") { 1_000 } else { 1 }),
        None => (time.strip_suffix('s').expect("a unit"), 1_000_000),
    };
    number.parse::<u64>().expect("a number") * unit
}

fn spec(name: &str) -> PluginSpec {
    PluginSpec {
        name: name.into(),
        version: "1.0.0".into(),
        hash: [7; 32],
        size: 4_096,
        mode: Mode::Parallel,
        placement: Placement::Process,
        payload: Payload::Json,
        config: std::collections::BTreeMap::new(),
        restart: RestartPolicy { times: 1, window_ms: 1_000 },
        deadline_ms: 1_000,
        stateless: true,
    }
}
