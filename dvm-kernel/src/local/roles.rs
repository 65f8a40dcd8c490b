//! Who the primary of each plug-in is, as this server has followed the history, and whether this member's may act.

use dvm_core::Delivery;
use dvm_core::ids::{Fence, Name, Time};
use dvm_core::state::{EventKind, State, TransactionKind};
use std::collections::BTreeMap;

/// Plug-ins that have a primary, and this member's lease.
#[derive(Debug, Default)]
pub(crate) struct Roles {
    plugins: BTreeMap<Name, Role>,
    lease_until: Time,
}

#[derive(Debug, Default)]
struct Role {
    /// The member of the primary; none while nobody can be it.
    primary: Option<Name>,
    /// This member's promotion, if it is the primary: its token, and when it may begin to act.
    mine: Option<(Fence, Time)>,
}

/// Who answers a plug-in's commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// Every instance.
    Anybody,
    /// The instance of this member, if there is one at present.
    Primary(Option<Name>),
}

/// When a primary may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acts {
    /// At this moment.
    Now,
    /// Not before then, for another may hold its lease so long.
    From(Time),
    /// Once its lease is renewed.
    WithALease,
}

impl Roles {
    pub(super) fn delivered(&mut self, delivery: &Delivery) {
        if let Some(ended) = delivery.ended.as_deref().filter(|ended| ended.committed) {
            match &ended.transaction.kind {
                _ if ended.transaction.dry_run => {}
                TransactionKind::Load(spec) if spec.mode.has_primary() => {
                    self.plugins.insert(spec.name.clone(), Role::default());
                }
                TransactionKind::Unload { plugin } => drop(self.plugins.remove(plugin)),
                _ => {}
            }
        }
        for event in &delivery.events {
            match &event.kind {
                EventKind::InstancePromoted { plugin, member, .. } => {
                    if let Some(role) = self.plugins.get_mut(plugin) {
                        *role = Role { primary: Some(member.clone()), mine: None };
                    }
                }
                EventKind::InstanceDemoted { plugin, member, .. }
                | EventKind::InstanceFailed { plugin, member, .. } => {
                    if let Some(role) = self.plugins.get_mut(plugin)
                        && role.primary.as_ref() == Some(member)
                    {
                        *role = Role::default();
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn restored(&mut self, state: &State) {
        let with_primary = state.plugins.iter().filter(|(_, plugin)| plugin.spec.mode.has_primary());
        self.plugins = with_primary
            .map(|(name, plugin)| {
                let primary = plugin.primary.map(|member| state.name_of(member));
                (name.clone(), Role { primary, mine: None })
            })
            .collect();
    }

    /// This member's instance was promoted.
    pub(super) fn primary(&mut self, plugin: &Name, fence: Fence, from: Time) {
        if let Some(role) = self.plugins.get_mut(plugin) {
            role.mine = Some((fence, from));
        }
    }

    pub(super) fn lease(&mut self, until: Time) {
        self.lease_until = until;
    }

    /// The incarnation ends: none of its instances is a primary any more.
    pub(super) fn step_down(&mut self) {
        self.lease_until = Time(0);
        self.plugins.values_mut().for_each(|role| role.mine = None);
    }

    /// Who answers the plug-in's commands.
    pub(super) fn answerer(&self, plugin: &Name) -> Answerer {
        self.plugins.get(plugin).map_or(Answerer::Anybody, |role| Answerer::Primary(role.primary.clone()))
    }

    /// Whether this member's instance may act as the primary, if it is that.
    pub(super) fn mine(&self, plugin: &Name, now: Time) -> Option<Acts> {
        let (_, from) = self.plugins.get(plugin)?.mine?;
        Some(match from {
            from if from > now => Acts::From(from),
            _ if now < self.lease_until => Acts::Now,
            _ => Acts::WithALease,
        })
    }
}
