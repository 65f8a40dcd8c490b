//! Where a plug-in's instances are, and which of them is the primary: pure functions of the state, so that nobody is
//! elected and all members agree at the entry that changes it.

use super::*;

impl State {
    /// Where the instances of a load are to start: as many members as it wants, or as there are.
    pub(super) fn places_for(&self, spec: &PluginSpec) -> Vec<MemberId> {
        let mut places: Vec<_> = self.members_for(spec).collect();
        if spec.mode.has_primary() {
            places.sort_by_key(|member| self.load_of(*member));
            places.truncate(usize::from(spec.instances));
        }
        places
    }

    /// Members that a plug-in may be on, by rank.
    fn members_for(&self, spec: &PluginSpec) -> impl Iterator<Item = MemberId> {
        self.view.members.iter().copied().filter(|member| {
            let record = &self.members[member];
            record.leaving.is_none() && spec.may_be_on(&record.identity)
        })
    }

    /// How many instances a member has of plug-ins that are not everywhere.
    fn load_of(&self, member: MemberId) -> usize {
        let placed = self.plugins.iter().filter(|(_, plugin)| plugin.spec.mode.has_primary());
        placed.filter(|(_, plugin)| plugin.instances.contains_key(&member)).count()
    }

    /// Gives a plug-in the instances it lacks. A failed one keeps its place, so that it is not tried there again.
    fn place(&self, plugin: &mut Plugin, placed: &mut Vec<Placed>) {
        let lives = |i: &Instance| matches!(i.state, InstanceState::Starting | InstanceState::Running);
        loop {
            let live = plugin.instances.values().filter(|i| lives(i)).count();
            let enough = plugin.spec.mode.has_primary() && live >= usize::from(plugin.spec.instances);
            if enough || !self.add_instance(plugin, InstanceState::Starting, placed) {
                break;
            }
        }
        let keeps = plugin.instances.values().any(|i| i.state == InstanceState::Keeping);
        if plugin.spec.mode == Mode::Single && !plugin.spec.stateless && !keeps {
            self.add_instance(plugin, InstanceState::Keeping, placed);
        }
    }

    /// Adds an instance where there is none, the member that keeps the state first; false if there is no such member.
    fn add_instance(&self, plugin: &mut Plugin, state: InstanceState, placed: &mut Vec<Placed>) -> bool {
        let keeper = plugin.instances.iter_mut().find(|(_, i)| i.state == InstanceState::Keeping);
        let member = if let Some((member, keeper)) = keeper {
            keeper.state = state;
            *member
        } else {
            let free = self.members_for(&plugin.spec).filter(|m| !plugin.instances.contains_key(m));
            let Some(member) = free.min_by_key(|member| self.load_of(*member)) else { return false };
            let rank = plugin.next_rank();
            let (pid, reason, ran) = (0, String::new(), HistoryIndex(0));
            plugin.instances.insert(member, Instance { rank, state, pid, reason, ran });
            member
        };
        placed.push(Placed { plugin: plugin.spec.name.clone(), member, state, own: false });
        true
    }

    /// Who is to be the primary: who is it, while it can be, else the first instance that can.
    fn primary_of(&self, plugin: &Plugin) -> Option<MemberId> {
        let provisional = self.view.label == Label::Provisional;
        if !plugin.spec.mode.has_primary() || (plugin.spec.only_confirmed && provisional) {
            return None;
        }
        let stays = |member: &MemberId| self.members.get(member).is_some_and(|m| m.leaving.is_none());
        let runs = plugin.instances.iter().filter(|(_, i)| i.state == InstanceState::Running);
        let can = |wanted: Option<bool>| {
            let those = runs.clone().filter(|(m, _)| wanted.is_none_or(|wanted| stays(m) == wanted));
            those.min_by_key(|(_, instance)| instance.rank).map(|(member, _)| *member)
        };
        let present = plugin.primary.filter(|m| runs.clone().any(|(member, _)| member == m));
        // Who leaves goes on until another can take over.
        present.filter(stays).or_else(|| can(Some(true))).or(present).or_else(|| can(None))
    }

    /// Stores a plug-in that something happened to: with the instances it lacks, its primary, its condition, and the
    /// events that tell of them. `anew`: its primary is promoted again in any case.
    pub(super) fn keep_plugin(&mut self, name: Name, mut plugin: Plugin, anew: bool, step: &mut Step) {
        self.place(&mut plugin, &mut step.placed);
        let (before, now) = (plugin.primary, self.primary_of(&plugin));
        if let Some(member) = before.filter(|_| now != before)
            && let Some(instance) = plugin.instances.get(&member)
            && instance.state == InstanceState::Running
        {
            let (plugin, rank, member) = (name.clone(), instance.rank, self.name_of(member));
            step.kinds.push(EventKind::InstanceDemoted { plugin, member, rank });
        }
        if let Some(member) = now.filter(|_| anew || now != before) {
            self.fence += 1;
            plugin.fence = Some(Fence(self.fence));
            let from = before.filter(|from| *from != member).map(|from| self.name_of(from));
            let rank = plugin.instances[&member].rank;
            let (plugin, fence, member) = (name.clone(), Fence(self.fence), self.name_of(member));
            step.kinds.push(EventKind::InstancePromoted { plugin, member, rank, fence, from });
        }
        plugin.primary = now;
        let (from, state) = (plugin.state, plugin.condition());
        plugin.state = state;
        self.plugins.insert(name.clone(), plugin);
        if from != state {
            step.kinds.push(EventKind::PluginChanged { plugin: name, state, from });
        }
    }

    /// Looks at every plug-in again: members came, went or changed, or the label did.
    pub(super) fn keep_plugins(&mut self, anew: bool, step: &mut Step) {
        let all: Vec<_> = self.plugins.iter().map(|(name, plugin)| (name.clone(), plugin.clone())).collect();
        for (name, plugin) in all {
            self.keep_plugin(name, plugin, anew, step);
        }
    }
}

impl Plugin {
    /// Has instances that failed for good begin again, as far as they are wanted: another version may do better. Those who
    /// failed last come first, and where none runs, the first of them has the state that the others take: it is wanted even
    /// where as many were placed in their stead, who wait for it.
    pub(super) fn revive(&mut self, placed: &mut Vec<Placed>) {
        let lives = |i: &&Instance| matches!(i.state, InstanceState::Starting | InstanceState::Running);
        let live = self.instances.values().filter(lives).count();
        let wanted = match self.spec.mode.has_primary() {
            true => usize::from(self.spec.instances).saturating_sub(live),
            false => usize::MAX,
        };
        let mut own = self.instances.values().all(|i| i.state != InstanceState::Running);
        let wanted = wanted.max(usize::from(own));
        let failed = self.instances.iter_mut().filter(|(_, i)| i.state == InstanceState::Failed);
        let mut failed: Vec<_> = failed.collect();
        failed.sort_by_key(|(_, instance)| (core::cmp::Reverse(instance.ran), instance.rank));
        for (member, instance) in failed.into_iter().take(wanted) {
            instance.state = InstanceState::Starting;
            instance.reason.clear();
            let (plugin, member, state) = (self.spec.name.clone(), *member, instance.state);
            placed.push(Placed { plugin, member, state, own: own && instance.ran > HistoryIndex(0) });
            own = false;
        }
    }

    /// The rank of the instance that comes next.
    fn next_rank(&mut self) -> Rank {
        let last = self.instances.values().map(|instance| instance.rank.0).max();
        if last == Some(u16::MAX) {
            let mut in_order: Vec<_> = self.instances.values_mut().collect();
            in_order.sort_by_key(|instance| instance.rank);
            in_order.into_iter().enumerate().for_each(|(at, instance)| instance.rank = Rank(at as u16));
            return Rank(self.instances.len() as u16);
        }
        Rank(last.map_or(0, |last| last + 1))
    }
}

impl PluginSpec {
    /// Whether a member is among those it may be on.
    #[must_use]
    pub fn may_be_on(&self, member: &Identity) -> bool {
        let means = |selector: &Selector| match selector {
            Selector::Name(name) => *name == member.name,
            Selector::Tag(tag, value) => member.tags.get(tag) == Some(value),
        };
        self.on.is_empty() || self.on.iter().any(means)
    }
}
