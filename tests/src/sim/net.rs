//! The network between machines: who reaches whom, and how fast. A value with its own generator.

use super::dice::{between, permille, stream};
use super::options::Noise;
use dvm_core::Prng;

/// Machines a run can have.
pub(crate) const HOSTS: usize = 24;

/// A machine, by number.
pub(crate) type Host = usize;

/// Who reaches whom, and how fast.
pub(crate) struct Net {
    noise: Noise,
    prng: Prng,
    cuts: Vec<Cut>,
    next_cut: u64,
    /// How many cuts lie on the way `[from][to]`.
    blocked: [[u8; HOSTS]; HOSTS],
    /// No ring data passes this way.
    stuck: [[bool; HOSTS]; HOSTS],
    /// Machines without power.
    down: [bool; HOSTS],
    /// Added to each way from or to a machine, microseconds.
    spike_us: [u64; HOSTS],
}

struct Cut {
    id: u64,
    ways: Vec<(Host, Host)>,
}

impl Net {
    pub(crate) fn new(seed: u64, noise: Noise) -> Self {
        Self {
            noise,
            prng: stream(seed, 3),
            cuts: Vec::new(),
            next_cut: 0,
            blocked: [[0; HOSTS]; HOSTS],
            stuck: [[false; HOSTS]; HOSTS],
            down: [false; HOSTS],
            spike_us: [0; HOSTS],
        }
    }

    /// Whether packets pass one way.
    pub(crate) fn passes(&self, from: Host, to: Host) -> bool {
        self.blocked[from][to] == 0 && !self.down[from] && !self.down[to]
    }

    /// Whether packets pass both ways, as a connection needs.
    pub(crate) fn connects(&self, a: Host, b: Host) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    /// Whether large frames get through.
    pub(crate) fn is_stuck(&self, from: Host, to: Host) -> bool {
        self.stuck[from][to]
    }

    /// Whether a machine has no power.
    pub(crate) fn is_down(&self, host: Host) -> bool {
        self.down[host]
    }

    /// Cuts ways; the answer undoes it.
    pub(crate) fn cut(&mut self, ways: Vec<(Host, Host)>) -> u64 {
        for (from, to) in &ways {
            self.blocked[*from][*to] += 1;
        }
        self.next_cut += 1;
        self.cuts.push(Cut { id: self.next_cut, ways });
        self.next_cut
    }

    /// Undoes one cut, if it still stands.
    pub(crate) fn mend(&mut self, id: u64) {
        let Some(at) = self.cuts.iter().position(|cut| cut.id == id) else { return };
        for (from, to) in self.cuts.swap_remove(at).ways {
            self.blocked[from][to] -= 1;
        }
    }

    pub(crate) fn set_stuck(&mut self, from: Host, to: Host, stuck: bool) {
        self.stuck[from][to] = stuck;
    }

    pub(crate) fn set_spike(&mut self, host: Host, us: u64) {
        self.spike_us[host] = us;
    }

    pub(crate) fn set_down(&mut self, host: Host, down: bool) {
        self.down[host] = down;
    }

    /// Ends all faults of the network; machines stay down.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.blocked = [[0; HOSTS]; HOSTS];
        self.stuck = [[false; HOSTS]; HOSTS];
        self.spike_us = [0; HOSTS];
        (self.noise.loss, self.noise.double, self.noise.reorder_us) = (0, 0, 0);
    }

    /// Time of one packet over one way, microseconds.
    pub(crate) fn hop_us(&mut self, from: Host, to: Host) -> u64 {
        let usual = between(&mut self.prng, self.noise.hop_us / 4 + 1, self.noise.hop_us.max(1) + 1);
        let spike = self.spike_us[from].max(self.spike_us[to]);
        if spike == 0 { usual } else { usual + self.prng.below(spike) }
    }

    /// When the copies of one control message arrive, microseconds from now: none, one or two.
    pub(crate) fn datagram(&mut self, from: Host, to: Host) -> [Option<u64>; 2] {
        if !self.passes(from, to) || permille(&mut self.prng, self.noise.loss) {
            return [None, None];
        }
        let doubled = permille(&mut self.prng, self.noise.double);
        [Some(self.datagram_us(from, to)), doubled.then(|| self.datagram_us(from, to))]
    }

    fn datagram_us(&mut self, from: Host, to: Host) -> u64 {
        let hop = self.hop_us(from, to);
        if self.noise.reorder_us == 0 { hop } else { hop + self.prng.below(self.noise.reorder_us) }
    }

    /// How late a timer fires, microseconds.
    pub(crate) fn late_us(&mut self) -> u64 {
        // Seldom very late, mostly a little.
        let bound = if self.prng.chance(1, 50) { self.noise.late_us } else { self.noise.late_us.min(100) };
        self.prng.below(bound + 1)
    }
}
