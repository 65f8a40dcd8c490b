//! The commands of a scenario.
//!
//! | command | does |
//! |---|---|
//! | `set KEY VALUE` | a setting, before `ring` |
//! | `ring N` | founds and joins until `a`, `b`, … are in one view at rest |
//! | `trace WORD…`, `trace off` | tells these outputs as they are made |
//! | `put M KEY VALUE [as SESSION SEQ] [if-absent]` | a client of `M` asks for a change |
//! | `many M COUNT KEY BYTES` | so many changes of one key, each with a value of that length |
//! | `load M PLUGIN [RULE] [dry]` | a transaction; RULE: `all`, `majority`, `any`, `at-least:K` |
//! |  | and `hot=K`, `single`, `confirmed`, `on=NAME` |
//! | `instance M PLUGIN started\|failed\|again` | what became of `M`'s instance; `again`: it failed and is started again |
//! | `execute M ok\|failed\|timeout\|abstain\|later` | what `M` answers from now on when it is asked to execute |
//! | `executed M VERDICT` | what it held ends so |
//! | `leave M`, `halt M`, `promote M` | |
//! | `join M via CONTACT` | a kernel starts and joins; a second of a name is another incarnation |
//! | `kill M`, `power-off M` | the process ends; the machine is gone and tells nobody |
//! | `doom M WORD [N]` | `M` dies instead of sending its N-th message of the kind |
//! | `pause M`, `resume M` | |
//! | `reset A B` | the ring link from A to B breaks, with all that is on it |
//! | `hold A B`, `release A B` | from the next DATA on, ring frames from A to B are held; they go on |
//! | `cut A,B / C,D`, `cut A > B`, `heal` | |
//! | `lose WORD A B`, `lose nothing` | messages of the kind from A to B are lost; `*` is anybody |
//! | `late WORD A B`, `late arrive` | the same are kept back, until all of them arrive in their order |
//! | `run`, `wait TIME` | until only timers remain; for `300us`, `20ms`, `2s` |
//! | `show views\|histories [N]\|keys\|plugins\|answers\|events M [N]\|orphans` | |

use super::show::shown_value;
use super::world::{Execution, World};
use bytes::Bytes;
use dvm_core::Input;
use dvm_core::ids::TransactionId;
use dvm_core::state::*;
use dvm_core::wire::Verdict;
use std::collections::BTreeMap;

/// Plays a scenario's text: what is in it with the outputs that come.
pub fn play(text: &str) -> String {
    let mut world = World::new();
    let mut played = String::new();
    for block in text.split("\n\n").map(|block| block.trim_matches('\n')).filter(|block| !block.is_empty()) {
        let commands: Vec<_> = block.lines().take_while(|line| *line != "----").collect();
        for command in commands.iter().filter(|line| !line.starts_with('#')) {
            let words: Vec<_> = command.split_whitespace().collect();
            world.command(&words);
        }
        if !played.is_empty() {
            played.push('\n');
        }
        let output: Vec<_> = world.log.drain(..).collect();
        let has_output = block.lines().any(|line| line == "----") || !output.is_empty();
        let rule = has_output.then(|| "----".to_owned());
        let lines = commands.into_iter().map(str::to_owned).chain(rule).chain(output);
        lines.for_each(|line| played += &format!("{}\n", line.trim_end()));
    }
    played
}

impl World {
    /// Carries out one command.
    fn command(&mut self, words: &[&str]) {
        match *words {
            ["set", key, value] => self.config.set(key, value).expect("a setting"),
            ["ring", n] => self.gather(number(n) as usize),
            ["trace", "off"] => self.trace.clear(),
            ["trace", ref words @ ..] => self.trace = words.iter().map(ToString::to_string).collect(),
            ["put", m, key, value] => self.put(m, key, value, None, false),
            ["put", m, key, value, "if-absent"] => self.put(m, key, value, None, true),
            ["put", m, key, value, "as", session, seq] => {
                let stamp = Stamp { session: session.into(), seq: number(seq) };
                self.put(m, key, value, Some(stamp), false);
            }
            ["many", m, count, key, bytes] => {
                let value = "0".repeat(number(bytes) as usize);
                (0..number(count)).for_each(|_| self.put(m, key, &value, None, false));
            }
            ["load", m, plugin, ref how @ ..] => self.load(m, plugin, how),
            ["execute", m, how] => {
                let execution = if how == "later" { Execution::Holds } else { Execution::Says(verdict(how)) };
                let at = self.at(m);
                self.kernels[at].execution = execution;
            }
            ["instance", m, plugin, how] => self.report(self.at(m), plugin, how),
            ["executed", m, how] => self.executed(self.at(m), verdict(how)),
            ["leave", m] => self.offer(self.at(m), None, Input::Leave { by: LeaveBy::Remove }),
            ["halt", m] => self.submit(self.at(m), "halt", None, Change::Halt { by: m.into() }),
            ["promote", m] => {
                let request = self.request(self.at(m), "promote");
                self.offer(self.at(m), None, Input::Promote { request, lineage: 2 });
            }
            ["join", m, "via", contact] => self.start(m, Some(contact)),
            ["kill", m] => self.kill(self.at(m), false),
            ["power-off", m] => self.kill(self.at(m), true),
            ["doom", m, word] => self.doomed.push((self.at(m), word.into(), 1)),
            ["doom", m, word, n] => self.doomed.push((self.at(m), word.into(), number(n) as u32)),
            ["pause", m] => self.pause(self.at(m)),
            ["resume", m] => self.resume(self.at(m)),
            ["reset", a, b] => self.reset(self.at(a), self.at(b)),
            ["hold", a, b] => self.hold(self.at(a), self.at(b)),
            ["release", a, b] => self.release(self.at(a), self.at(b)),
            ["cut", from, ">", to] => self.cut_all(from, to, false),
            ["cut", from, "/", to] => self.cut_all(from, to, true),
            ["heal"] => self.heal(),
            ["lose", "nothing"] => self.losses.clear(),
            ["lose", word, a, b] => self.losses.push((word.into(), a.into(), b.into())),
            ["late", "arrive"] => self.late_arrive(),
            ["late", word, a, b] => self.late.push((word.into(), a.into(), b.into())),
            ["run"] => self.run(),
            ["wait", time] => self.wait_us(microseconds(time)),
            ["show", what, ref more @ ..] => self.show(what, more),
            _ => panic!("no such command: {}", words.join(" ")),
        }
    }

    fn cut_all(&mut self, from: &str, to: &str, both: bool) {
        for a in from.split(',') {
            for b in to.split(',') {
                let (a, b) = (self.at(a), self.at(b));
                self.cut(a, b);
                if both {
                    self.cut(b, a);
                }
            }
        }
    }

    fn put(&mut self, m: &str, key: &str, value: &str, stamp: Option<Stamp>, if_absent: bool) {
        let conditions = if if_absent { vec![(key.into(), KeyCondition::Absent)] } else { Vec::new() };
        let value = Bytes::copy_from_slice(value.as_bytes());
        let then = vec![KeyOperation::Put { key: key.into(), value: value.clone() }];
        let asked = format!("{key}={}", shown_value(&value));
        let change = Change::Keys(KeyTransaction { conditions, then, otherwise: Vec::new() });
        self.submit(self.at(m), &asked, stamp, change);
    }

    fn load(&mut self, m: &str, plugin: &str, how: &[&str]) {
        let (version, hash, size, payload) = ("1".into(), [0; 32], 1, Payload::Json);
        let mut spec = PluginSpec::of(plugin.into(), Library { version, hash, size, payload });
        let mut words = Vec::new();
        for word in how {
            match word.split_once('=') {
                Some(("hot", k)) => (spec.mode, spec.instances) = (Mode::Hot, number(k) as u16),
                Some(("on", name)) => spec.on.push(Selector::Name(name.into())),
                _ if *word == "single" => (spec.mode, spec.stateless) = (Mode::Single, false),
                _ if *word == "confirmed" => spec.only_confirmed = true,
                _ => words.push(*word),
            }
        }
        let rule = words.iter().find(|word| **word != "dry").copied().unwrap_or("all");
        let require = match rule.split_once(':') {
            Some(("at-least", k)) => Require::AtLeast(number(k) as u32),
            None if rule == "majority" => Require::Majority,
            None if rule == "any" => Require::Any,
            _ => Require::All,
        };
        let at = self.at(m);
        let serial =
            self.kernels.iter().map(|kernel| kernel.asked.len() + kernel.answers.len()).sum::<usize>() as u64;
        let transaction = Transaction {
            id: TransactionId { originator: self.kernels[at].member.id(), serial: serial + 1 },
            kind: TransactionKind::Load(Box::new(spec)),
            require,
            dry_run: words.contains(&"dry"),
        };
        self.submit(at, &format!("load {plugin}"), None, Change::Transaction(Box::new(transaction)));
    }

    fn report(&mut self, at: usize, plugin: &str, how: &str) {
        let member = self.kernels[at].member.id();
        let state = self.kernels[at].member.state().expect("a member has a state");
        let since = state.plugins.get(&plugin.to_owned()).expect("it is loaded").since;
        let what = match how {
            "started" => InstanceChange::Started { pid: 1 },
            _ => {
                let (cause, detail) = ("exit".into(), "on purpose".into());
                let failure = InstanceFailure { cause, exit_code: Some(1), signal: None, detail };
                InstanceChange::Failed { failure, again: how == "again" }
            }
        };
        let report = InstanceReport { plugin: plugin.into(), since, member, what };
        self.submit(at, &format!("{plugin} {how}"), None, Change::Instance(report));
    }

    fn show(&mut self, what: &str, more: &[&str]) {
        let last = |lines: Vec<String>, n: Option<&&str>| {
            let n = n.map_or(lines.len(), |n| number(n) as usize);
            lines[lines.len().saturating_sub(n)..].to_vec()
        };
        let lines: Vec<String> = match what {
            "views" => self.kernels.iter().map(|kernel| self.status(kernel)).collect(),
            "histories" => {
                let groups = self.alike(|kernel| last(self.history(kernel), more.first()));
                let told = groups.into_iter().flat_map(|(names, entries)| {
                    [format!("{names}:")]
                        .into_iter()
                        .chain(entries.into_iter().map(|entry| format!("  {entry}")))
                });
                told.collect()
            }
            "keys" => {
                let groups = self.alike(|kernel| vec![self.keys(kernel)]);
                groups.into_iter().map(|(names, keys)| format!("{names}: {}", keys.concat())).collect()
            }
            "plugins" => {
                let groups = self.alike(|kernel| vec![self.plugins(kernel)]);
                groups.into_iter().map(|(names, plugins)| format!("{names}: {}", plugins.concat())).collect()
            }
            "answers" => {
                let mut lines = Vec::new();
                for kernel in &self.kernels {
                    for (asked, answer) in &kernel.answers {
                        lines.push(format!("{}: {asked}: {}", kernel.name, self.answer(answer)));
                    }
                }
                self.kernels.iter_mut().for_each(|kernel| kernel.answers.clear());
                lines
            }
            "events" => {
                let events = self.kernel(more[0]).member.events().map(|event| self.event(event));
                last(events.collect(), more.get(1))
            }
            _ => panic!("nothing to show is called {what}"),
        };
        self.log.extend(lines);
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("no number: {word}"))
}

fn microseconds(word: &str) -> u64 {
    let (digits, unit) = word.split_at(word.find(|c: char| c.is_alphabetic()).expect("a unit"));
    let factor = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        _ => panic!("no unit of time: {unit}"),
    };
    number(digits) * factor
}

fn verdict(word: &str) -> Verdict {
    match word {
        "ok" => Verdict::Ok,
        "failed" => Verdict::Failed,
        "timeout" => Verdict::Timeout,
        "abstain" => Verdict::Abstain,
        _ => panic!("no verdict: {word}"),
    }
}
