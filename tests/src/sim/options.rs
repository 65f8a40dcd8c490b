//! What one seed decides before a run begins (swarm testing: each seed turns some things on and leaves others out).

use super::dice::{between, one_of, stream};
use super::faults::FaultKind;
use super::mutant::Mutant;
use dvm_core::{Config, Merge, Partition, Prng};
use std::fmt;

/// How much goes wrong. Each level contains the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Calm,
    /// Processes and machines die.
    Crashes,
    /// Members come, go and come back.
    Membership,
    /// Pauses, cuts, reset connections.
    Cuts,
    /// Stuck flows, lost and doubled messages, slowness, crooked clocks, faults from the first moment.
    Everything,
}

impl Level {
    /// The level of a number from 0 to 4; higher ones mean everything.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Calm,
            1 => Self::Crashes,
            2 => Self::Membership,
            3 => Self::Cuts,
            _ => Self::Everything,
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Everything a seed decides except the faults themselves, which are a [`Plan`](super::Plan).
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// How much goes wrong.
    pub level: Level,
    /// A deliberate mistake in the shell, to see that the checkers find it.
    pub mutant: Option<Mutant>,
    /// Members at the start.
    pub members: usize,
    /// The DVM's settings.
    pub config: Config,
    /// How long phase one lasts, milliseconds.
    pub chaos_ms: u64,
    /// Faults begin with the first process instead of when all have joined.
    pub from_start: bool,
    /// Kinds of faults that occur.
    pub kinds: Vec<FaultKind>,
    /// How many faults at times drawn beforehand.
    pub faults: u64,
    /// How many faults at points of the protocol.
    pub aims: u64,
    /// Whether what goes wrong is a story instead: faults that chance would hardly bring together.
    pub story: bool,
    /// How many processes faults may kill.
    pub deaths_max: usize,
    /// What the network and the clocks do all the time.
    pub noise: Noise,
    /// What clients do.
    pub work: Work,
    /// How executing transactions goes.
    pub execution: Execution,
}

/// What the network and the clocks do all the time.
#[derive(Clone, Debug)]
pub struct Noise {
    /// Longest time over one link, microseconds.
    pub hop_us: u64,
    /// Control messages lost, in a thousand.
    pub loss: u64,
    /// Control messages doubled, in a thousand.
    pub double: u64,
    /// Control messages may come this much later than sent in order, microseconds.
    pub reorder_us: u64,
    /// Fastest and slowest clock, parts in a million off.
    pub drift_ppm: u64,
    /// Timers fire up to this late, microseconds.
    pub late_us: u64,
    /// A stopped process's kernel takes new links for it.
    pub accept_paused: bool,
    /// Bytes that the kernel takes from a queue although the flow is stuck.
    pub buffer: u64,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct Work {
    /// How many clients.
    pub clients: usize,
    /// Longest pause between two requests of a client, microseconds.
    pub think_us: u64,
    /// Requests with a large value, in a thousand.
    pub large: u64,
    /// Requests about plug-ins, in a thousand.
    pub transactions: u64,
}

/// How executing transactions goes.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Longest usual time, microseconds.
    pub usual_us: u64,
    /// Executions that fail, in a thousand.
    pub fail: u64,
    /// Executions that take much longer, in a thousand.
    pub slow: u64,
    /// Executions that reach the limit, in a thousand.
    pub never: u64,
}

impl Options {
    /// What `seed` decides at `level`.
    #[must_use]
    pub fn draw(seed: u64, level: Level, mutant: Option<Mutant>) -> Self {
        let mut prng = stream(seed, 1);
        let members = between(&mut prng, 1, 9) as usize;
        let config = draw_config(&mut prng);
        let silence = config.silence_ms;
        let kinds = draw_kinds(&mut prng, level);
        let everything = level == Level::Everything;
        let story = everything && stream(seed, 6).chance(1, 16);
        let (members, config) = match story {
            true => (3, Config { partition: Partition::Quorum, accusers: 1, ..config }),
            false => (members, config),
        };
        let minority = (members - 1) / 2;
        let deaths_max = one_of(&mut prng, &[0, 1, minority, minority, members, usize::MAX]);
        Self {
            seed,
            level,
            mutant,
            members,
            chaos_ms: silence * between(&mut prng, 4, 16),
            from_start: everything && prng.chance(1, 5),
            faults: if kinds.is_empty() || story { 0 } else { between(&mut prng, 0, 12) },
            aims: if level == Level::Calm || story { 0 } else { between(&mut prng, 0, 5) },
            story,
            kinds,
            deaths_max,
            noise: if everything { Noise::draw(&mut prng, silence) } else { Noise::quiet() },
            work: Work::draw(&mut prng, silence),
            execution: Execution::draw(&mut prng, level),
            config,
        }
    }
}

impl Noise {
    /// A good local network, and clocks that keep time.
    #[must_use]
    pub fn quiet() -> Self {
        let (hop_us, drift_ppm, late_us) = (300, 0, 50);
        Self {
            hop_us,
            loss: 0,
            double: 0,
            reorder_us: 0,
            drift_ppm,
            late_us,
            accept_paused: false,
            buffer: 0,
        }
    }

    fn draw(prng: &mut Prng, silence_ms: u64) -> Self {
        Self {
            hop_us: one_of(prng, &[50, 300, 300, 1_000, silence_ms * 10]),
            loss: one_of(prng, &[0, 0, 10, 50, 200]),
            double: one_of(prng, &[0, 0, 20, 200]),
            reorder_us: one_of(prng, &[0, 0, 500, silence_ms * 50]),
            drift_ppm: one_of(prng, &[0, 0, 100, 20_000]),
            late_us: one_of(prng, &[50, 50, 2_000, silence_ms * 100]),
            accept_paused: prng.chance(1, 2),
            buffer: one_of(prng, &[0, 4 << 10, 256 << 10]),
        }
    }
}

impl Work {
    fn draw(prng: &mut Prng, silence_ms: u64) -> Self {
        Self {
            clients: between(prng, 1, 5) as usize,
            think_us: silence_ms * one_of(prng, &[20, 100, 100, 500]),
            large: one_of(prng, &[0, 0, 30, 200]),
            transactions: one_of(prng, &[0, 30, 150]),
        }
    }
}

impl Execution {
    fn draw(prng: &mut Prng, level: Level) -> Self {
        let wild = level == Level::Everything;
        Self {
            usual_us: one_of(prng, &[500, 5_000, 50_000]),
            fail: one_of(prng, &[0, 0, 50, 300]),
            slow: if wild { one_of(prng, &[0, 0, 100]) } else { 0 },
            never: if wild { one_of(prng, &[0, 0, 50]) } else { 0 },
        }
    }
}

fn draw_config(prng: &mut Prng) -> Config {
    Config {
        partition: one_of(prng, &[Partition::Survive, Partition::Quorum]),
        silence_ms: one_of(prng, &[100, 250, 500, 1_000]),
        cut_dead_ms: one_of(prng, &[0, 1, 1, 10]),
        cut_silent_ms: one_of(prng, &[0, 20, 50]),
        observers: one_of(prng, &[2, 3, 4, 4]),
        accusers: one_of(prng, &[1, 2, 2, 3]),
        window: one_of(prng, &[1, 2, 8, 32]),
        ring_budget: one_of(prng, &[64 << 10, 8 << 20]),
        exec_limit_ms: one_of(prng, &[100, 500, 2_000]),
        history_entries: one_of(prng, &[64, 64 << 10, 64 << 10]),
        join_batch_ms: one_of(prng, &[0, 5, 20]),
        waiting: one_of(prng, &[4, 4_096, 4_096]),
        merge: one_of(prng, &[Merge::Discard, Merge::Resubmit]),
        ..Config::default()
    }
}

/// Each kind the level allows is in with one chance in two; a run with few kinds gets deeper into each.
fn draw_kinds(prng: &mut Prng, level: Level) -> Vec<FaultKind> {
    FaultKind::ALL.into_iter().filter(|kind| kind.level() <= level && prng.chance(1, 2)).collect()
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.word()).collect();
        let standard = Config::default().list();
        let settings = self.config.list();
        let settings = settings.iter().zip(&standard).filter(|(mine, usual)| mine != usual);
        let settings: Vec<_> = settings.map(|((key, value), _)| format!("{key}={value}")).collect();
        let (level, members, chaos) = (self.level.number(), self.members, self.chaos_ms);
        write!(f, "seed {} level {level} members {members} chaos {chaos} ms", self.seed)?;
        if self.from_start {
            write!(f, " from the start")?;
        }
        if let Some(mutant) = self.mutant {
            write!(f, " mutant {}", mutant.word())?;
        }
        write!(f, "; {} faults of [{}], {} aimed", self.faults, kinds.join(" "), self.aims)?;
        if self.story {
            write!(f, ", a story")?;
        }
        match self.deaths_max {
            usize::MAX => write!(f, ", any deaths")?,
            most => write!(f, ", at most {most} deaths")?,
        }
        write!(f, "; settings [{}]", settings.join(" "))?;
        write!(f, "; {:?}; {:?}; {:?}", self.noise, self.work, self.execution)
    }
}
