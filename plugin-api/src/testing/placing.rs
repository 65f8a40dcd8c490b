//! Where instances are: members that come and go, who is the primary, and where an instance's state comes from.

use super::dvm::{Base, Dvm, Member, settled};
use super::failure::{Breach, Failure};
use super::history::{State, What};
use super::instance::{Running, place};
use super::{MEMBERS_MAX, Mode};
use crate::{Place, Role};
use serde_json::json;

impl Dvm {
    /// A member is lost, with its instance.
    ///
    /// # Errors
    /// [`Failure::Misuse`] for the last member; or if the plug-in breaks at what follows.
    pub fn crash(&mut self, member: &str) -> Result<(), Failure> {
        let at = self.find(member)?;
        if self.members.len() == 1 {
            return Err(Failure::Misuse(format!("{member} is the last member; let another one join first")));
        }
        self.step(format!("crash {member}"));
        drop(self.members.remove(at));
        self.world.set_members(self.names());
        let fields = json!({
            "member": member, "rank": at, "members": self.members.len(), "tags": {}, "cause": "silent"
        });
        self.happened("member-failed", |_| fields);
        self.push(What::Members(self.names()));
        self.others(|dvm| dvm.crash(member))?;
        self.settle()
    }

    /// A member joins; its name. An instance there begins with another one's snapshot and what came since.
    ///
    /// # Errors
    /// If there are [`MEMBERS_MAX`] members; or if the plug-in breaks at what follows.
    pub fn join(&mut self) -> Result<String, Failure> {
        if self.members.len() == MEMBERS_MAX {
            return Err(Failure::Misuse(format!("there are {MEMBERS_MAX} members, and no more are allowed")));
        }
        let name = format!("k{}", self.born);
        self.step(format!("join {name}"));
        self.born += 1;
        self.members.push(Member { name: name.clone(), paused: false, instance: None });
        self.world.set_members(self.names());
        let rank = self.members.len() - 1;
        let fields = json!({"member": name, "rank": rank, "members": rank + 1, "tags": {}});
        self.happened("member-joined", |_| fields);
        self.push(What::Members(self.names()));
        self.others(|dvm| dvm.join().map(drop))?;
        self.settle()?;
        Ok(name)
    }

    /// The instance on a member fails, as if its process was killed; it is started again from another one's state, or
    /// where there is none from the last snapshot and what came since.
    ///
    /// # Errors
    /// If there is no such instance; or if the plug-in breaks at what follows.
    pub fn fail(&mut self, member: &str) -> Result<(), Failure> {
        let at = self.find(member)?;
        if self.members[at].instance.is_none() {
            return Err(Failure::Misuse(format!("{member} has no instance")));
        }
        self.step(format!("fail {member}"));
        self.members[at].paused = false;
        self.lose(at, "signal", "killed");
        self.settle()
    }

    /// The instance on a member is told nothing from here on.
    ///
    /// # Errors
    /// If there is no such member.
    pub fn pause(&mut self, member: &str) -> Result<(), Failure> {
        let at = self.find(member)?;
        self.step(format!("pause {member}"));
        self.members[at].paused = true;
        Ok(())
    }

    /// The instance on a member is told what it missed.
    ///
    /// # Errors
    /// If there is no such member; or if the plug-in breaks at it.
    pub fn resume(&mut self, member: &str) -> Result<(), Failure> {
        let at = self.find(member)?;
        self.step(format!("resume {member}"));
        self.members[at].paused = false;
        self.settle()
    }

    /// The next standby that is not paused becomes the primary. The old one may act no longer, and is told so when it
    /// hears.
    ///
    /// # Errors
    /// [`Failure::Misuse`] if there is none; or if the plug-in breaks at what follows.
    pub fn promote(&mut self) -> Result<(), Failure> {
        let old = self.primary.clone().map(|(name, _)| name);
        let next = self.holders.iter().filter(|name| Some(*name) != old.as_ref());
        let mut next = next.filter_map(|name| self.find(name).ok());
        let next = next.find(|at| self.bed.mode.has_primary() && self.is_ready(*at));
        let Some(next) = next else {
            return Err(Failure::Misuse("there is no standby that could be the primary".into()));
        };
        let name = self.members[next].name.clone();
        self.step(format!("promote {name}"));
        if let Some(old) = old {
            self.demote(&old);
        }
        self.elect(next)?;
        self.settle()
    }

    /// From here on, an instance that no other one has a state for begins with a snapshot of this moment, and standbys
    /// of a `warm` plug-in have it.
    ///
    /// # Errors
    /// If no instance hears that has a state.
    pub fn keep_snapshot(&mut self) -> Result<(), Failure> {
        let Some(at) = self.source(usize::MAX) else {
            return Err(Failure::Misuse("no instance has a state to keep; resume one".into()));
        };
        self.step("keep a snapshot".into());
        let running = self.members[at].instance.as_mut().expect("it is a source");
        let (at, state) = (running.at, settled(running.snapshot())?);
        self.base = Base { at, state: Some(state) };
        Ok(())
    }

    /// Whether a member's instance could be the primary.
    fn is_ready(&self, at: usize) -> bool {
        !self.members[at].paused && self.members[at].instance.is_some()
    }

    /// Members that are to have an instance, instances for them, and a primary.
    pub(super) fn place_instances(&mut self) -> Result<(), Failure> {
        let names = self.names();
        let wanted = match self.bed.mode {
            Mode::Parallel => names.len(),
            Mode::Hot | Mode::Warm => self.bed.instances.min(names.len()),
            Mode::Single => 1,
        };
        self.holders.retain(|holder| names.contains(holder));
        let free: Vec<_> = names.into_iter().filter(|name| !self.holders.contains(name)).collect();
        let missing = wanted - self.holders.len();
        self.holders.extend(free.into_iter().take(missing));
        if self.primary.as_ref().is_some_and(|(name, _)| !self.holders.contains(name)) {
            self.primary = None;
        }
        for holder in self.holders.clone() {
            let at = self.find(&holder)?;
            if self.members[at].instance.is_none() {
                self.begin(at)?;
            }
        }
        if self.bed.mode.has_primary() && self.primary.is_none() {
            let ready =
                self.holders.iter().filter_map(|name| self.find(name).ok()).find(|at| self.is_ready(*at));
            if let Some(at) = ready {
                self.elect(at)?;
            }
        }
        Ok(())
    }

    /// A member whose instance's state another one may begin with.
    fn source(&self, not: usize) -> Option<usize> {
        let is = |at: usize| at != not && self.members[at].hears() && !self.bed.stateless;
        (0..self.members.len())
            .filter(|at| is(*at))
            .max_by_key(|at| self.members[*at].instance.as_ref().map(|running| running.at))
    }

    /// The configuration of a place in the history.
    fn config_at(&self, position: usize) -> Vec<u8> {
        let configs = self.items[..position].iter().rev().filter_map(|item| match &item.what {
            What::Configure(config) => Some(config),
            _ => None,
        });
        configs.into_iter().next().unwrap_or(&self.config).clone()
    }

    /// Starts a member's instance, with another one's state if that is to be had.
    fn begin(&mut self, at: usize) -> Result<(), Failure> {
        let applies = self.bed.mode.all_apply();
        let end = self.items.len();
        // At the very beginning all start fresh.
        let source = self.source(at).filter(|_| applies && end > 0);
        let (position, state) = match source {
            // It has no state, and begins with what comes.
            _ if self.bed.stateless => (end, None),
            Some(source) => {
                let running = self.members[source].instance.as_mut().expect("it is a source");
                (running.at, Some(settled(running.snapshot())?))
            }
            None => (self.base.at, self.base.state.clone()),
        };
        self.launch(at, &place(&self.members[at].name, &self.names()), position, false)?;
        if applies {
            self.take_over(at, position, state)?;
        }
        Ok(())
    }

    /// A fresh instance with the configuration of a place in the history and its first role.
    fn launch(&mut self, at: usize, place: &Place, position: usize, mute: bool) -> Result<(), Failure> {
        let config = self.config_at(position);
        let settings = self.settings(&place.member, mute);
        let mut running = settled(Running::start(self.bed.module, config, place, settings))?;
        let role = if self.bed.mode.has_primary() { Role::Standby } else { Role::Active };
        running.roles.push_back((0, role));
        self.members[at].instance = Some(running);
        Ok(())
    }

    /// A fresh instance takes a state over, and is told what follows it from here on.
    fn take_over(&mut self, at: usize, position: usize, state: Option<Vec<u8>>) -> Result<(), Failure> {
        let running = self.members[at].instance.as_mut().expect("it was launched");
        (running.at, running.applies) = (position, true);
        let Some(snapshot) = state else {
            // As it is right after its start, all must be alike.
            return match position {
                0 => self.compare(at, 0, None)?.map_err(Failure::Own),
                _ => Ok(()),
            };
        };
        if let Err(error) = running.restore(&snapshot) {
            return Err(self.broken(Breach::Refused, at, position, error.to_string()));
        }
        let (was, is) = (State::of(&snapshot), settled(running.state())?);
        if was != is {
            let detail = format!("taken:    {}\nrestored: {}", was.text(), is.text());
            return Err(self.broken(Breach::HandedOver, at, position, detail));
        }
        Ok(())
    }

    /// The last member's instance, which is none of the others' business, is told the whole history as if it had been the
    /// first member's.
    pub(super) fn replay(&mut self, at: usize) -> Result<(), Failure> {
        let first: Vec<String> = (0..self.bed.members).map(|rank| format!("k{rank}")).collect();
        self.launch(at, &place("k0", &first), 0, true)?;
        self.take_over(at, 0, None)?;
        for position in 0..self.items.len() {
            self.tell(position)?;
            if self.members[at].instance.is_none() {
                return Err(self.panic.take().expect("it is gone because it panicked"));
            }
        }
        Ok(())
    }

    /// A member's instance is the primary from here on.
    fn elect(&mut self, at: usize) -> Result<(), Failure> {
        let name = self.members[at].name.clone();
        let fields = json!({"plugin": self.bed.name, "member": name, "rank": at});
        let fence = self.happened("instance-promoted", |index| {
            let mut fields = fields;
            fields["fence"] = index.into();
            fields
        });
        self.primary = Some((name, fence));
        let running = self.members[at].instance.as_ref().expect("it is ready");
        if !running.applies {
            // It stood by: it begins with what it kept, and applies what came since.
            let position = if self.bed.stateless { self.items.len() } else { self.base.at };
            if running.config != self.config_at(position) {
                self.launch(at, &place(&self.members[at].name, &self.names()), position, false)?;
            }
            self.take_over(at, position, self.base.state.clone().filter(|_| !self.bed.stateless))?;
        }
        let behind = self.items.len();
        let running = self.members[at].instance.as_mut().expect("it is ready");
        running.roles.push_back((behind, Role::Primary { fence }));
        Ok(())
    }

    /// A member's instance is the primary no longer.
    fn demote(&mut self, name: &str) {
        let Ok(at) = self.find(name) else { return };
        let fields = json!({"plugin": self.bed.name, "member": name, "rank": at});
        self.happened("instance-demoted", |_| fields);
        let behind = self.items.len();
        let Some(running) = self.members[at].instance.as_mut() else { return };
        running.expire();
        if self.bed.mode.all_apply() {
            running.roles.push_back((behind, Role::Standby));
        } else {
            // One that only stands by has no state: it is started again.
            self.members[at].instance = None;
        }
    }
}
