//! Ring links as TCP makes them: they come about or not, carry frames in order, get stuck, break.

use super::checker::Step;
use super::link::{End, Link, LinkNo};
use super::mutant::Mutant;
use super::process::Run;
use super::world::{Event, World};
use bytes::Bytes;
use dvm_core::ids::{LinkId, MemberId, ViewId};
use dvm_core::wire::Ring;
use dvm_core::{Input, Side};

/// How often a link that waits for a stopped process looks again, microseconds.
const CONNECT_AGAIN_US: u64 = 10_000;

impl World {
    /// A link that was asked for comes about, or not.
    pub(crate) fn connect(&mut self, pid: usize, of: MemberId, to: MemberId, view: ViewId, until_us: u64) {
        let Some(&target) = self.who.get(&to) else { return };
        if !self.is_present(of) {
            return;
        }
        let (here, there) = (self.processes[pid].host, self.processes[target].host);
        let failed = Event::Input { pid, of: Some(of), input: Input::LinkFailed { to, view } };
        if !self.net.connects(here, there) {
            self.queue.push(until_us, failed);
        } else if !self.is_present(to) {
            let hop = self.net.hop_us(here, there);
            self.after(hop, failed);
            let input = self.nobody_there(pid, to);
            self.after(hop, Event::Input { pid, of: Some(of), input });
        } else if self.processes[target].run == Run::Paused && !self.options.noise.accept_paused {
            // Its kernel takes the connection, but nobody says who is there.
            if self.now() >= until_us {
                self.queue.push(until_us, failed);
            } else {
                self.after(CONNECT_AGAIN_US, Event::Connect { pid, of, to, view, until_us });
            }
        } else {
            self.open([(pid, of), (target, to)], view);
        }
    }

    fn open(&mut self, ends: [(usize, MemberId); 2], view: ViewId) {
        let link = self.links.len();
        let hosts = ends.map(|(pid, _)| self.processes[pid].host);
        let built = [0, 1].map(|end| {
            let (pid, member) = ends[end];
            let up_us = self.now() + self.net.hop_us(hosts[1 - end], hosts[end]);
            let id = self.processes[pid].new_link(link, end);
            let peer = ends[1 - end].1;
            self.processes[pid].known.insert(peer);
            let side = if end == 0 { Side::Outgoing } else { Side::Incoming };
            let input = Input::LinkUp { link: id, peer, view, side };
            self.queue.push(up_us, Event::Input { pid, of: Some(member), input });
            End::new(pid, member, id, up_us)
        });
        self.links.push(Link::new(view, built));
    }

    /// A member places a frame.
    pub(crate) fn place(&mut self, pid: usize, id: LinkId, mut message: Ring) {
        let Some(&(no, end)) = self.processes[pid].links.get(&id) else { return };
        let verdict = self.checker.ballots.ring_sent(self.links[no].ends[end].member, self.links[no].view);
        self.judge_safety(verdict);
        if let Ring::Data(data) = &message
            && data.hops == 1
        {
            self.steps.push(Step::Placed(self.links[no].view, data.clone()));
        }
        if self.options.mutant == Some(Mutant::CorruptBody)
            && self.prng.chance(1, 40)
            && let Ring::Data(data) = &mut message
        {
            data.body = Bytes::from([&data.body[..], b"!"].concat());
        }
        let now_us = self.now();
        let leave_us = self.links[no].place(end, now_us, message.cost(), 0);
        self.queue.push(leave_us, Event::Leave { link: no, end, message });
    }

    /// A frame leaves an out-queue: the member has room again, and the frame is on its way or stuck.
    pub(crate) fn leave_queue(&mut self, no: LinkNo, end: usize, message: Ring) {
        let now_us = self.now();
        if self.links[no].ends[end].down {
            return;
        }
        if self.links[no].broken {
            // Nobody acknowledges: the kernel gives up after a while, if no reset came through.
            if self.links[no].ends[end].orphaned {
                self.links[no].ends[end].orphaned = false;
                let us = self.options.config.silence_ms * 1_000;
                self.after(us, Event::LinkDown { link: no, end });
            }
            return;
        }
        if self.options.mutant == Some(Mutant::LoseFrame) && self.prng.chance(1, 100) {
            return;
        }
        let cost = message.cost();
        let (pid, id) = (self.links[no].ends[end].pid, self.links[no].ends[end].id);
        if self.gets_stuck(no, end, &message) {
            let stream = &mut self.links[no].ends[end];
            stream.held.push_back(message);
            stream.held_cost += cost;
            if stream.held_cost <= self.options.noise.buffer {
                self.offer(pid, None, Input::Written { link: id, cost });
            }
            return;
        }
        let (here, there) = self.hosts(no, end);
        let mut hop = self.net.hop_us(here, there);
        if self.options.mutant == Some(Mutant::SwapFrames) && self.prng.chance(1, 40) {
            hop += 5 * self.options.noise.hop_us;
            self.queue.push(now_us + hop, Event::Frame { link: no, end: 1 - end, message });
        } else {
            let arrive_us = self.links[no].arrival(end, now_us, hop);
            self.queue.push(arrive_us, Event::Frame { link: no, end: 1 - end, message });
        }
        self.offer(pid, None, Input::Written { link: id, cost });
    }

    /// Whether a frame goes no further now. The first one held starts the time-out of unacknowledged bytes.
    fn gets_stuck(&mut self, no: LinkNo, end: usize, message: &Ring) -> bool {
        let (here, there) = self.hosts(no, end);
        let stream = &self.links[no].ends[end];
        if !stream.held.is_empty() {
            return true;
        }
        let is_cut = !self.net.connects(here, there);
        let is_large = matches!(message, Ring::Data(_));
        let is_stuck = stream.stuck || (is_large && self.net.is_stuck(here, there));
        if is_cut {
            let stream = &mut self.links[no].ends[end];
            stream.holding += 1;
            let holding = stream.holding;
            let us = self.options.config.silence_ms * 1_000;
            self.after(us, Event::UserTimeout { link: no, end, holding });
        }
        is_cut || is_stuck
    }

    fn hosts(&self, no: LinkNo, end: usize) -> (usize, usize) {
        let ends = &self.links[no].ends;
        (self.processes[ends[end].pid].host, self.processes[ends[1 - end].pid].host)
    }

    /// A frame arrives.
    pub(crate) fn frame(&mut self, no: LinkNo, end: usize, message: Ring) {
        let to = &self.links[no].ends[end];
        if !to.down {
            let (pid, of, link) = (to.pid, to.member, to.id);
            self.offer(pid, Some(of), Input::Ring { link, message });
        }
    }

    /// One end learns that its link is gone.
    pub(crate) fn link_down(&mut self, no: LinkNo, end: usize) {
        let stream = &mut self.links[no].ends[end];
        if !stream.down {
            stream.down = true;
            stream.held.clear();
            let (pid, of, link) = (stream.pid, stream.member, stream.id);
            self.processes[pid].links.remove(&link);
            self.offer(pid, Some(of), Input::LinkDown { link });
        }
    }

    pub(crate) fn user_timeout(&mut self, no: LinkNo, end: usize, holding: u64) {
        let (here, there) = self.hosts(no, end);
        let stream = &self.links[no].ends[end];
        let is_open = self.net.connects(here, there);
        if stream.down || stream.held.is_empty() || stream.holding != holding || is_open {
            return;
        }
        self.links[no].broken = true;
        self.link_down(no, end);
        self.tell_down(no, 1 - end);
    }

    /// A process closes a link, or ends: the other end hears of it behind all that has left.
    pub(crate) fn close(&mut self, pid: usize, id: LinkId) {
        let Some((no, end)) = self.processes[pid].links.remove(&id) else { return };
        let link = &mut self.links[no];
        link.ends[end].down = true;
        link.ends[end].held.clear();
        link.broken = true;
        self.tell_down(no, 1 - end);
    }

    /// A link breaks in the middle; each end learns of it at its own time, and what comes later is lost.
    pub(crate) fn reset(&mut self, no: LinkNo) {
        if self.links[no].broken {
            return;
        }
        self.links[no].broken = true;
        for end in 0..2 {
            let up_us = self.links[no].ends[end].up_us;
            let far = self.prng.chance(1, 4);
            let us = self.prng.below(if far { self.options.config.silence_ms * 300 } else { 1_000 });
            let at_us = (self.now() + us).max(up_us + 1);
            self.queue.push(at_us, Event::LinkDown { link: no, end });
        }
    }

    /// Lets an end know that its link is gone, if the word gets through; else when the way is mended.
    fn tell_down(&mut self, no: LinkNo, end: usize) {
        if self.links[no].ends[end].down {
            return;
        }
        let (here, there) = self.hosts(no, end);
        if !self.net.passes(there, here) {
            self.links[no].ends[end].orphaned = true;
            return;
        }
        self.links[no].ends[end].orphaned = false;
        let hop = self.net.hop_us(there, here);
        let at_us = (self.now() + hop)
            .max(self.links[no].last_arrival(1 - end))
            .max(self.links[no].ends[end].up_us + 1);
        self.queue.push(at_us, Event::LinkDown { link: no, end });
    }

    /// After a way was mended: what was held goes on, and word of broken links gets through.
    pub(crate) fn mend_links(&mut self) {
        for no in 0..self.links.len() {
            for end in 0..2 {
                if self.links[no].ends[end].orphaned {
                    self.tell_down(no, end);
                }
                if !self.links[no].ends[end].held.is_empty() {
                    self.release(no, end);
                }
            }
        }
    }

    fn release(&mut self, no: LinkNo, end: usize) {
        let (here, there) = self.hosts(no, end);
        let stream = &self.links[no].ends[end];
        let is_stuck = stream.stuck || self.net.is_stuck(here, there);
        if self.links[no].broken || is_stuck || !self.net.connects(here, there) {
            return;
        }
        let (pid, id) = (stream.pid, stream.id);
        let stream = &mut self.links[no].ends[end];
        let held = std::mem::take(&mut stream.held);
        let mut swallowed = 0;
        stream.held_cost = 0;
        for message in held {
            let cost = message.cost();
            swallowed += cost;
            let (now_us, hop) = (self.now(), self.net.hop_us(here, there));
            let arrive_us = self.links[no].arrival(end, now_us, hop);
            self.queue.push(arrive_us, Event::Frame { link: no, end: 1 - end, message });
            if swallowed > self.options.noise.buffer {
                self.after(1, Event::Input { pid, of: None, input: Input::Written { link: id, cost } });
            }
        }
    }
}
