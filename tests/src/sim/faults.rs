//! What goes wrong, drawn before the run begins, so that a run can be repeated with some of it left out.

use super::dice::{between, one_of, pick, stream};
use super::options::{Level, Options};
use dvm_core::Standing;
use dvm_core::wire::{Control, Ring};
use dvm_core::{Output, Prng};
use std::collections::BTreeSet;
use std::fmt;

/// What can go wrong at a time drawn beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A process dies; its machine says so to whoever asks.
    Crash,
    /// A machine dies with its process, in silence.
    PowerOff,
    /// A process is stopped for a while (SIGSTOP).
    Pause,
    /// One machine's packets to another are lost.
    CutOneWay,
    /// The machines fall apart into two groups.
    CutGroup,
    /// One link takes no more data; its bytes are acknowledged.
    StuckFlow,
    /// No ring data passes from one machine to another; small frames do (an MTU hole).
    StuckEdge,
    /// A ring link is reset.
    ResetLink,
    /// The control connection of two members is reset.
    ResetControl,
    /// A machine's network becomes slow for a while.
    Spike,
    /// A process becomes slow for a while.
    SlowMember,
    /// A new kernel joins.
    Join,
    /// A member leaves in order.
    Leave,
    /// A dead process is started again, under its name.
    Restart,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::PowerOff,
        Self::Pause,
        Self::CutOneWay,
        Self::CutGroup,
        Self::StuckFlow,
        Self::StuckEdge,
        Self::ResetLink,
        Self::ResetControl,
        Self::Spike,
        Self::SlowMember,
        Self::Join,
        Self::Leave,
        Self::Restart,
    ];

    /// The lowest level that has it.
    #[must_use]
    pub fn level(self) -> Level {
        match self {
            Self::Crash | Self::PowerOff => Level::Crashes,
            Self::Join | Self::Leave | Self::Restart => Level::Membership,
            Self::Pause | Self::CutOneWay | Self::CutGroup | Self::ResetLink | Self::ResetControl => {
                Level::Cuts
            }
            Self::StuckFlow | Self::StuckEdge | Self::Spike | Self::SlowMember => Level::Everything,
        }
    }

    /// As it is printed.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::PowerOff => "power-off",
            Self::Pause => "pause",
            Self::CutOneWay => "cut-one-way",
            Self::CutGroup => "cut-group",
            Self::StuckFlow => "stuck-flow",
            Self::StuckEdge => "stuck-edge",
            Self::ResetLink => "reset-link",
            Self::ResetControl => "reset-control",
            Self::Spike => "spike",
            Self::SlowMember => "slow-member",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Restart => "restart",
        }
    }
}

/// One fault at a time. Whom it strikes is worked out from `dice` when it strikes, among those alive then.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its number in the plan.
    pub number: usize,
    /// When, microseconds after phase one began.
    pub after_us: u64,
    /// What.
    pub kind: FaultKind,
    /// Whom.
    pub dice: u64,
    /// For how long, microseconds, where that applies.
    pub for_us: u64,
}

/// A place in the protocol at which a fault can be aimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the message of that name, at the moment it is sent")]
pub enum Point {
    Data,
    Stable,
    Collect,
    Resume,
    Suspect,
    FlushRequest,
    FlushAck,
    FlushNack,
    Fetch,
    Bodies,
    Propose,
    Accept,
    Commit,
    Query,
    Expelled,
    Join,
    Tail,
    Ready,
    JoinerFetch,
    JoinerFill,
    Snapshot,
    Probe,
    ProbeReply,
    Yielded,
    Taken,
    Execute,
    Excluded,
    Connect,
}

impl Point {
    const ALL: [Self; 28] = [
        Self::Data,
        Self::Stable,
        Self::Collect,
        Self::Resume,
        Self::Suspect,
        Self::FlushRequest,
        Self::FlushAck,
        Self::FlushNack,
        Self::Fetch,
        Self::Bodies,
        Self::Propose,
        Self::Accept,
        Self::Commit,
        Self::Query,
        Self::Expelled,
        Self::Join,
        Self::Tail,
        Self::Ready,
        Self::JoinerFetch,
        Self::JoinerFill,
        Self::Snapshot,
        Self::Probe,
        Self::ProbeReply,
        Self::Yielded,
        Self::Taken,
        Self::Execute,
        Self::Excluded,
        Self::Connect,
    ];

    const FLUSH: [Self; 8] = [
        Self::FlushRequest,
        Self::FlushAck,
        Self::Fetch,
        Self::Bodies,
        Self::Propose,
        Self::Accept,
        Self::Commit,
        Self::Commit,
    ];

    /// Where a member that was left out looks for a branch that takes it in.
    const RETURN: [Self; 8] = [
        Self::Excluded,
        Self::Taken,
        Self::Expelled,
        Self::Join,
        Self::Join,
        Self::Snapshot,
        Self::Tail,
        Self::Probe,
    ];

    /// The place that an output marks, if it does.
    pub(crate) fn of(output: &Output) -> Option<Self> {
        Some(match output {
            Output::Ring { message, .. } => match message {
                Ring::Data(_) => Self::Data,
                Ring::Stable(_) => Self::Stable,
                Ring::Collect(_) => Self::Collect,
                Ring::Resume { .. } => Self::Resume,
            },
            Output::Control { message, .. } => Self::of_control(message)?,
            Output::Snapshot { .. } => Self::Snapshot,
            Output::Execute { .. } => Self::Execute,
            Output::Standing(Standing::Excluded { .. }) => Self::Excluded,
            Output::Connect { .. } => Self::Connect,
            _ => return None,
        })
    }

    fn of_control(message: &Control) -> Option<Self> {
        Some(match message {
            Control::Suspect { .. } => Self::Suspect,
            Control::FlushRequest { .. } => Self::FlushRequest,
            Control::FlushAck { .. } => Self::FlushAck,
            Control::FlushNack { .. } => Self::FlushNack,
            Control::Fetch { .. } => Self::Fetch,
            Control::Bodies { .. } => Self::Bodies,
            Control::Propose { .. } => Self::Propose,
            Control::Accept { .. } => Self::Accept,
            Control::Commit { .. } => Self::Commit,
            Control::Query { .. } => Self::Query,
            Control::Expelled { .. } => Self::Expelled,
            Control::Join { .. } => Self::Join,
            Control::Tail { .. } => Self::Tail,
            Control::Ready { .. } => Self::Ready,
            Control::JoinerFetch { .. } => Self::JoinerFetch,
            Control::JoinerFill { .. } => Self::JoinerFill,
            Control::Probe { .. } => Self::Probe,
            Control::ProbeReply { .. } => Self::ProbeReply,
            Control::Yielded { .. } => Self::Yielded,
            Control::Taken { .. } => Self::Taken,
            Control::Relay { message, .. } => return Self::of_control(message),
            _ => return None,
        })
    }
}

/// What an aimed fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The sender dies before the message leaves.
    CrashBefore,
    /// The sender dies just after.
    CrashAfter,
    /// The receiver dies about when the message comes.
    CrashReceiver,
    /// The sender is stopped just after.
    PauseSender,
    /// The receiver is stopped about when the message comes.
    PauseReceiver,
    /// All ring links of the sender are reset.
    ResetLinks,
    /// Sender and receiver are cut from each other.
    CutPair,
    /// From then on for a while, nothing passes from the sender to the receiver.
    CutWay,
    /// The sender is cut from all others just before: it goes on with what nobody hears.
    Isolate,
    /// The message is lost.
    Lose,
    /// The message comes two or three silence times late.
    Late,
}

impl Strike {
    /// Those that strike anywhere.
    const ANYWHERE: [Self; 10] = [
        Self::CrashBefore,
        Self::CrashAfter,
        Self::CrashReceiver,
        Self::PauseSender,
        Self::PauseReceiver,
        Self::ResetLinks,
        Self::CutPair,
        Self::Isolate,
        Self::Lose,
        Self::Late,
    ];

    fn level(self) -> Level {
        match self {
            Self::CrashBefore | Self::CrashAfter | Self::CrashReceiver => Level::Crashes,
            Self::PauseSender
            | Self::PauseReceiver
            | Self::ResetLinks
            | Self::CutPair
            | Self::CutWay
            | Self::Isolate => Level::Cuts,
            Self::Lose | Self::Late => Level::Everything,
        }
    }

    /// As it is printed.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::CrashBefore => "aimed-crash-before",
            Self::CrashAfter => "aimed-crash-after",
            Self::CrashReceiver => "aimed-crash-receiver",
            Self::PauseSender => "aimed-pause-sender",
            Self::PauseReceiver => "aimed-pause-receiver",
            Self::ResetLinks => "aimed-reset-links",
            Self::CutPair => "aimed-cut-pair",
            Self::CutWay => "aimed-cut-way",
            Self::Isolate => "aimed-isolate",
            Self::Lose => "aimed-lose",
            Self::Late => "aimed-late",
        }
    }
}

/// One fault at a point of the protocol: when an output of that kind is seen for the `nth` time in phase one, or since
/// another one struck.
#[derive(Clone, Debug)]
pub struct Aim {
    /// Its number in the plan.
    pub number: usize,
    /// Where.
    pub point: Point,
    /// The aimed fault that must have struck before, by its number; times are counted from there.
    pub follows: Option<usize>,
    /// The how-manieth time, from 1.
    pub nth: u64,
    /// What.
    pub strike: Strike,
    /// For how long, microseconds, where that applies.
    pub for_us: u64,
}

/// All that goes wrong in one run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Faults at times.
    pub faults: Vec<Fault>,
    /// Faults at points of the protocol.
    pub aims: Vec<Aim>,
}

impl Plan {
    /// The plan of a run; with `only`, what is not in it is left out.
    #[must_use]
    pub fn draw(options: &Options, only: Option<&BTreeSet<usize>>) -> Self {
        let mut prng = stream(options.seed, 2);
        let silence_us = options.config.silence_ms * 1_000;
        let mut plan = Self::default();
        for number in 0..options.faults as usize {
            // A quarter come in pairs that are close together: a fault while another is being dealt with.
            let close = plan.faults.last().filter(|_| prng.chance(1, 4)).map(|fault: &Fault| fault.after_us);
            let far = prng.below(options.chaos_ms * 1_000);
            let near = prng.below(silence_us / 10);
            let after_us = close.map_or(far, |at| at + near);
            let kind = one_of(&mut prng, &options.kinds);
            let dice = prng.next_u64();
            let for_us = lasting(&mut prng, silence_us);
            plan.faults.push(Fault { number, after_us, kind, dice, for_us });
        }
        let strikes: Vec<_> = Strike::ANYWHERE.into_iter().filter(|s| s.level() <= options.level).collect();
        for number in 0..options.aims as usize {
            let number = number + options.faults as usize;
            // Half of them at a view change, where a lost step costs most.
            let points: &[Point] = match prng.below(4) {
                0 | 1 => &Point::FLUSH,
                2 => &Point::RETURN,
                _ => &Point::ALL,
            };
            let point = one_of(&mut prng, points);
            let nth = if prng.chance(1, 2) { between(&mut prng, 1, 4) } else { between(&mut prng, 1, 30) };
            // Half follow another, so that one step of the protocol is lost after the other.
            let follows = plan.aims.last().filter(|_| prng.chance(1, 2)).map(|aim: &Aim| aim.number);
            let for_us = lasting(&mut prng, silence_us);
            if let Some(strike) = pick(&mut prng, &strikes) {
                plan.aims.push(Aim { number, point, follows, nth, strike, for_us });
            }
        }
        if options.story {
            plan.aims.extend(story(&mut prng, silence_us));
        }
        if let Some(only) = only {
            plan.faults.retain(|fault| only.contains(&fault.number));
            plan.aims.retain(|aim| only.contains(&aim.number));
        }
        plan
    }

    /// The numbers of all that is in it.
    #[must_use]
    pub fn numbers(&self) -> Vec<usize> {
        let faults = self.faults.iter().map(|fault| fault.number);
        faults.chain(self.aims.iter().map(|aim| aim.number)).collect()
    }
}

/// One member does not hear another, and together with the third, which does, leaves it out; nobody but itself learns of
/// that view; and the one that was left out is stopped when the third asks it how theirs ended. If it was a primary, its
/// lease must have ended with the third member's promise.
fn story(prng: &mut Prng, silence_us: u64) -> [Aim; 3] {
    let aim = |number: usize, point, nth, strike, silences| {
        let follows = number.checked_sub(1);
        Aim { number, point, follows, nth, strike, for_us: silences * silence_us }
    };
    [
        aim(0, Point::Data, between(prng, 10, 400), Strike::CutWay, 6),
        aim(1, Point::Commit, 1, Strike::Isolate, between(prng, 2, 5)),
        aim(2, Point::Query, between(prng, 1, 3), Strike::PauseReceiver, between(prng, 1, 4)),
    ]
}

/// Short enough to pass unnoticed, about the time-outs, or long.
fn lasting(prng: &mut Prng, silence_us: u64) -> u64 {
    let (low, high) = one_of(prng, &[(1, 90), (80, 130), (100, 400), (300, 1_500)]);
    between(prng, low, high) * silence_us / 100
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            let (at, lasts) = (fault.after_us / 1_000, fault.for_us / 1_000);
            writeln!(f, "  {:>3} {} after {at} ms (for {lasts} ms)", fault.number, fault.kind.word())?;
        }
        for aim in &self.aims {
            let (strike, point, nth) = (aim.strike.word(), aim.point, aim.nth);
            let after = aim.follows.map_or(String::new(), |number| format!(" after {number}"));
            let lasts = aim.for_us / 1_000;
            writeln!(f, "  {:>3} {strike} at {point:?} {nth}{after} (for {lasts} ms)", aim.number)?;
        }
        Ok(())
    }
}
