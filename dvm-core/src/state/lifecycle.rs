//! What transactions, outcomes, instance reports and views do to plug-ins.

use super::*;

impl State {
    pub(super) fn apply_transaction(&mut self, transaction: Transaction, step: &mut Step) {
        let plugin = transaction.kind.plugin();
        let loaded = self.plugins.get(plugin).is_some();
        let is_load = matches!(transaction.kind, TransactionKind::Load(_));
        if self.open.values().any(|open| open.transaction.kind.plugin() == plugin) {
            step.applied =
                refused("busy", &alloc::format!("another transaction about {plugin} is open; try again"));
        } else if is_load && loaded {
            step.applied =
                refused("exists", &alloc::format!("a plug-in called {plugin} is loaded; unload it first"));
        } else if !is_load && !loaded {
            step.applied = refused("not-found", &alloc::format!("no plug-in is called {plugin}"));
        } else {
            let places = match &transaction.kind {
                TransactionKind::Load(spec) => self.places_for(spec),
                _ => Vec::new(),
            };
            if is_load && places.is_empty() {
                let reason = alloc::format!("no member is one that {plugin} may be on");
                step.applied = refused("not-found", &reason);
                return;
            }
            step.applied = Applied::Ordered(transaction.id);
            let electorate = self.view.members.clone();
            self.open.insert(transaction.id, Open { transaction, index: step.first, electorate, places });
        }
    }

    pub(super) fn apply_outcome(&mut self, outcome: Outcome, step: &mut Step) {
        // The first outcome in the total order counts; later ones find the transaction closed.
        let Some(open) = self.open.remove(&outcome.transaction) else { return };
        let electorate: Vec<_> = open.electorate.iter().copied().filter(|m| self.view.has(*m)).collect();
        let named = open.electorate.iter();
        let named: Vec<_> = named.map(|m| (self.name_of(*m), outcome.results.get(m).cloned())).collect();
        let transaction = open.transaction;
        if !transaction.dry_run {
            let plugin = transaction.kind.plugin().clone();
            let results = named;
            if outcome.committed {
                step.kinds.push(match &transaction.kind {
                    TransactionKind::Load(_) => EventKind::PluginLoaded { plugin, results },
                    TransactionKind::Unload { .. } => EventKind::PluginUnloaded { plugin, results },
                    TransactionKind::Configure { .. } => EventKind::PluginConfigured { plugin, results },
                    TransactionKind::Upgrade { library, .. } => {
                        EventKind::PluginUpgraded { plugin, version: library.version.clone(), results }
                    }
                });
                self.commit(&transaction.kind, &open.places, &electorate, &outcome, step);
            } else {
                step.kinds.push(EventKind::PluginRejected { plugin, results });
            }
        }
        let (committed, results) = (outcome.committed, outcome.results);
        step.ended = Some(Ended { transaction, committed, results, electorate: open.electorate });
    }

    fn commit(
        &mut self,
        kind: &TransactionKind,
        places: &[MemberId],
        electorate: &[MemberId],
        outcome: &Outcome,
        step: &mut Step,
    ) {
        match kind {
            TransactionKind::Load(spec) => {
                let present = places.iter().filter(|member| electorate.contains(member)).enumerate();
                let instances = present.map(|(rank, member)| {
                    let result = outcome.results.get(member);
                    let ok = result.is_some_and(|r| r.verdict == crate::wire::Verdict::Ok);
                    let state = match spec.placement {
                        _ if !ok => InstanceState::Failed,
                        // It runs from when an application has come for it.
                        Placement::Application => InstanceState::Starting,
                        Placement::Process | Placement::Kernel => InstanceState::Running,
                    };
                    let reason = result.map(|r| r.reason.clone()).unwrap_or_default();
                    let pid = result.map_or(0, |r| r.pid);
                    (*member, Instance { rank: Rank(rank as u16), state, pid, reason, ran: HistoryIndex(0) })
                });
                let plugin = Plugin {
                    spec: (**spec).clone(),
                    state: PluginState::Running,
                    instances: instances.collect(),
                    restarts: 0,
                    failures: 0,
                    primary: None,
                    fence: None,
                    since: step.first,
                };
                self.keep_plugin(spec.name.clone(), plugin, false, step);
            }
            TransactionKind::Unload { plugin } => drop(self.plugins.remove(plugin)),
            TransactionKind::Configure { plugin, edit } => {
                self.plugins.update(plugin, |p| p.spec.config = edit.apply(&p.spec.config));
            }
            TransactionKind::Upgrade { plugin: name, library, .. } => {
                let Some(mut plugin) = self.plugins.get(name).cloned() else { return };
                plugin.spec.library = library.clone();
                plugin.revive(&mut step.placed);
                self.keep_plugin(name.clone(), plugin, false, step);
            }
        }
    }

    pub(super) fn apply_instance(&mut self, report: &InstanceReport, step: &mut Step) {
        let member = self.name_of(report.member);
        let Some(mut plugin) = self.plugins.get(&report.plugin).cloned() else { return };
        if plugin.since != report.since {
            return;
        }
        let Some(instance) = plugin.instances.get_mut(&report.member) else { return };
        let (name, rank) = (report.plugin.clone(), instance.rank);
        step.kinds.push(match &report.what {
            InstanceChange::Moved { pid } => {
                instance.pid = *pid;
                self.plugins.insert(name, plugin);
                return;
            }
            InstanceChange::Started { pid } => {
                (instance.state, instance.pid) = (InstanceState::Running, *pid);
                instance.reason.clear();
                EventKind::InstanceStarted { plugin: name, member, rank }
            }
            InstanceChange::Restarted { pid } => {
                (instance.state, instance.pid) = (InstanceState::Running, *pid);
                instance.reason.clear();
                plugin.restarts += 1;
                EventKind::InstanceRestarted { plugin: name, member, rank }
            }
            InstanceChange::Failed { failure, again } => {
                if instance.state == InstanceState::Running {
                    instance.ran = step.first;
                }
                instance.state = if *again { InstanceState::Starting } else { InstanceState::Failed };
                instance.pid = 0;
                instance.reason.clone_from(&failure.detail);
                plugin.failures += 1;
                EventKind::InstanceFailed { plugin: name, member, rank, failure: failure.clone() }
            }
        });
        self.keep_plugin(report.plugin.clone(), plugin, false, step);
    }

    /// Instances of those who are gone fail; the others make up for them, and joiners may get some.
    pub(super) fn apply_view_to_plugins(&mut self, gone: &[(MemberId, Name)], step: &mut Step) {
        let all: Vec<_> = self.plugins.iter().map(|(name, plugin)| (name.clone(), plugin.clone())).collect();
        for (name, mut plugin) in all {
            for (member, member_name) in gone {
                let Some(instance) = plugin.instances.remove(member) else { continue };
                if instance.state == InstanceState::Keeping {
                    // Nothing ran there.
                    continue;
                }
                let failure = InstanceFailure {
                    cause: "member-lost".into(),
                    exit_code: None,
                    signal: None,
                    detail: String::new(),
                };
                let (plugin, member, rank) = (name.clone(), member_name.clone(), instance.rank);
                step.kinds.push(EventKind::InstanceFailed { plugin, member, rank, failure });
            }
            self.plugins.insert(name, plugin);
        }
        self.keep_plugins(false, step);
    }
}
