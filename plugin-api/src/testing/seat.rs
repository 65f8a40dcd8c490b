//! What an instance in memory asks its host by: its log, its token, its services, its workers.

use super::asks;
use super::stage::Stage;
use super::world::World;
use crate::abi::{HostCalls, HostCallsRef, Out, Slice, hand_out};
use crate::service::{Ask, Moment, refusal};
use crate::worker::Turn;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines of instances that are kept.
const LINES_MAX: usize = 256;

/// What instances did to the world outside.
#[derive(Default)]
pub(super) struct Outside {
    lines: Mutex<VecDeque<String>>,
    /// Who was given which token, in order, each once.
    tokens: Mutex<Vec<(String, u64)>>,
}

impl Outside {
    pub(super) fn lines(&self) -> Vec<String> {
        locked(&self.lines).iter().cloned().collect()
    }

    pub(super) fn tokens(&self) -> Vec<(String, u64)> {
        locked(&self.tokens).clone()
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where an instance is, as whom it asks, and whom.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) plugin: String,
    pub(super) member: String,
    pub(super) outside: Arc<Outside>,
    pub(super) world: Arc<World>,
    /// It is told what others were told, and changes nothing.
    pub(super) mute: bool,
}

/// An instance's. It lives for ever, since a plug-in may keep what leads to it.
pub(super) struct Seat {
    pub(super) id: u64,
    pub(super) plugin: String,
    pub(super) member: String,
    pub(super) mute: bool,
    /// The token it may act under; 0 if it may not.
    fence: AtomicU64,
    outside: Arc<Outside>,
    /// Until the instance is over.
    world: Mutex<Option<Arc<World>>>,
    workers: Mutex<Vec<Enlisted>>,
}

struct Enlisted {
    turn: Box<dyn FnMut() -> Turn + Send>,
    /// Its next turn, on the clock of the DVM, milliseconds.
    not_before_ms: u64,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seat({} on {})", self.plugin, self.member)
    }
}

impl Seat {
    pub(super) fn new(settings: Settings) -> &'static Self {
        let Settings { plugin, member, outside, world, mute } = settings;
        let id = world.open_desk(&plugin, &member, mute);
        Box::leak(Box::new(Self {
            id,
            plugin,
            member,
            mute,
            fence: AtomicU64::new(0),
            outside,
            world: Mutex::new(Some(world)),
            workers: Mutex::default(),
        }))
    }

    /// The host's functions for it.
    pub(super) fn calls(&'static self) -> HostCallsRef {
        HostCalls { ctx: (&raw const *self).cast(), log, token, ask }.leak()
    }

    /// It is the primary, and may act from here on.
    pub(super) fn promoted(&self, fence: u64, through: u64) {
        self.fence.store(fence, Ordering::Release);
        self.in_world(|world| {
            world.serve(self.id);
            world.promoted(self.id, Some(through));
        });
    }

    /// It is its member's instance from here on.
    pub(super) fn serve(&self) {
        self.in_world(|world| world.serve(self.id));
    }

    /// It may act no longer, whatever it was told of its role: as a lease ends by itself.
    pub(super) fn expire(&self) {
        self.fence.store(0, Ordering::Release);
        self.in_world(|world| world.promoted(self.id, None));
    }

    /// It is over.
    pub(super) fn close(&self) {
        self.fence.store(0, Ordering::Release);
        if let Some(world) = locked(&self.world).take() {
            world.close_desk(self.id);
        }
        locked(&self.workers).clear();
    }

    pub(super) fn enlist(&self, turn: Box<dyn FnMut() -> Turn + Send>) {
        locked(&self.workers).push(Enlisted { turn, not_before_ms: 0 });
    }

    /// Gives each worker that may work now one turn; whether one did something.
    pub(super) fn work(&self, now_ms: u64) -> bool {
        // What they do may ask, but enlists nobody: that is for `start`.
        let mut workers = std::mem::take(&mut *locked(&self.workers));
        let mut worked = false;
        for worker in workers.iter_mut().filter(|worker| worker.not_before_ms <= now_ms) {
            match (worker.turn)() {
                Turn::Idle => {}
                Turn::Worked => worked = true,
                Turn::Again(pause) => {
                    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1);
                    worker.not_before_ms = now_ms.saturating_add(pause_ms);
                }
            }
        }
        *locked(&self.workers) = workers;
        worked
    }

    /// When a worker is to do something again, if one is.
    pub(super) fn works_next(&self, now_ms: u64) -> Option<u64> {
        let workers = locked(&self.workers);
        workers.iter().map(|worker| worker.not_before_ms).filter(|at| *at > now_ms).min()
    }

    fn in_world(&self, act: impl FnOnce(&World)) {
        if let Some(world) = &*locked(&self.world) {
            act(world);
        }
    }

    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let ask: Ask = rmp_serde::from_slice(request)
            .map_err(|error| format!("the DVM in memory does not know what is asked: {error}"))?;
        let moment = Stage::moment(self);
        if let Some(why) = refusal(moment, &ask, &self.plugin) {
            return Err(why);
        }
        let world = locked(&self.world).clone().ok_or("this instance is over")?;
        let answer = match (self.mute, &ask) {
            (false, _) | (true, Ask::Get { .. }) => asks::answer(&world, self, ask)?,
            (true, ask) if moment == Moment::Start && ask.is_private() => serde_json::Value::Null,
            (true, _) => return Err("this instance is only told everything again, and does nothing".into()),
        };
        rmp_serde::to_vec_named(&answer).map_err(|error| error.to_string())
    }
}

/// The seat behind a pointer that a plug-in gives back.
fn behind(ctx: *const ()) -> &'static Seat {
    // SAFETY: `calls` gave the pointer out, and a seat is never freed.
    unsafe { &*ctx.cast::<Seat>() }
}

extern "C" fn log(ctx: *const (), _: u8, text: Slice<'_>) {
    let seat = behind(ctx);
    let mut lines = locked(&seat.outside.lines);
    if lines.len() == LINES_MAX {
        lines.pop_front();
    }
    lines.push_back(format!("{}: {}", seat.member, String::from_utf8_lossy(text.as_slice())));
}

extern "C" fn token(ctx: *const ()) -> u64 {
    let seat = behind(ctx);
    let fence = seat.fence.load(Ordering::Acquire);
    let mut tokens = locked(&seat.outside.tokens);
    if fence > 0 && tokens.last().is_none_or(|(_, last)| *last != fence) {
        tokens.push((seat.member.clone(), fence));
    }
    fence
}

extern "C" fn ask(ctx: *const (), request: Slice<'_>, out: Out) -> u32 {
    hand_out(behind(ctx).ask(request.as_slice()), out)
}
