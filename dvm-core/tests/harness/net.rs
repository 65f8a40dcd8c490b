//! Ring links as TCP makes them, cuts, and deaths.

use super::world::{HOP_US, Happening, World};
use dvm_core::ids::{LinkId, MemberId, ViewId};
use dvm_core::wire::Ring;
use dvm_core::{Input, Side};
use std::collections::VecDeque;

/// A link by number.
pub type LinkNo = usize;

/// One ring link. End 0 opened it, end 1 accepted it.
pub struct Link {
    ends: [End; 2],
    /// Nothing that was sent arrives.
    lost: bool,
}

struct End {
    at: usize,
    member: MemberId,
    id: LinkId,
    down: bool,
    /// Frames that it sent and that are held.
    held: VecDeque<Ring>,
}

impl World {
    /// Whether the way between two kernels is open in both directions.
    pub(super) fn connects(&self, a: usize, b: usize) -> bool {
        !self.cuts.contains(&(a, b)) && !self.cuts.contains(&(b, a))
    }

    /// Who is at the other end of a link.
    pub(super) fn far_end(&self, no: LinkNo, end: usize) -> MemberId {
        self.links[no].ends[1 - end].member
    }

    /// A link that was asked for comes about, or not.
    pub(super) fn connect(&mut self, at: usize, of: MemberId, to: MemberId, view: ViewId) {
        let patience_us = self.config.silence_ms * 500;
        let failed = Happening::Input { at, of: Some(of), input: Input::LinkFailed { to, view } };
        match self.present(to) {
            Some(there) if !self.connects(at, there) => self.after(patience_us, failed),
            Some(there) if self.kernels[there].paused => {
                self.after(10_000, Happening::Connect { at, of, to, view });
            }
            Some(there) => self.open([(at, of), (there, to)], view),
            None => match self.nobody(at, to) {
                Some(input) => {
                    self.after(0, failed);
                    self.after(0, Happening::Input { at, of: Some(of), input });
                }
                None => self.after(patience_us, failed),
            },
        }
    }

    fn open(&mut self, ends: [(usize, MemberId); 2], view: ViewId) {
        let link = self.links.len();
        let built = [0, 1].map(|end| {
            let (at, member) = ends[end];
            let id = LinkId(self.kernels[at].next_link);
            self.kernels[at].next_link += 1;
            self.kernels[at].links.insert(id, (link, end));
            let side = if end == 0 { Side::Outgoing } else { Side::Incoming };
            let input = Input::LinkUp { link: id, peer: ends[1 - end].1, view, side };
            self.after(HOP_US, Happening::Input { at, of: Some(member), input });
            End { at, member, id, down: false, held: VecDeque::new() }
        });
        self.links.push(Link { ends: built, lost: false });
    }

    /// A member places a frame.
    pub(super) fn place(&mut self, at: usize, id: LinkId, message: Ring) {
        let Some(&(no, end)) = self.kernels[at].links.get(&id) else { return };
        let link = &mut self.links[no];
        let (of, there) = (link.ends[end].member, link.ends[1 - end].at);
        if link.lost {
            return;
        }
        let is_stuck = self.holds.contains(&(at, there)) && matches!(message, Ring::Data(_));
        if is_stuck || !link.ends[end].held.is_empty() {
            link.ends[end].held.push_back(message);
            return;
        }
        let input = Input::Written { link: id, cost: message.cost() };
        self.after(1, Happening::Input { at, of: Some(of), input });
        self.after(HOP_US, Happening::Frame { link: no, end: 1 - end, message });
    }

    pub(super) fn frame(&mut self, no: LinkNo, end: usize, message: Ring) {
        let to = &self.links[no].ends[end];
        if !to.down && !self.links[no].lost {
            let (at, of, link) = (to.at, to.member, to.id);
            self.offer(at, Some(of), Input::Ring { link, message });
        }
    }

    pub(super) fn link_down(&mut self, no: LinkNo, end: usize) {
        let to = &mut self.links[no].ends[end];
        if !to.down {
            to.down = true;
            let (at, of, link) = (to.at, to.member, to.id);
            self.kernels[at].links.remove(&link);
            self.offer(at, Some(of), Input::LinkDown { link });
        }
    }

    /// A process closes its end; the other hears of it behind all that was sent.
    pub(super) fn close(&mut self, at: usize, id: LinkId) {
        let Some((no, end)) = self.kernels[at].links.remove(&id) else { return };
        self.links[no].ends[end].down = true;
        self.after(HOP_US, Happening::LinkDown { link: no, end: 1 - end });
    }

    /// The ring link from one kernel to another breaks, and what is on it is lost.
    pub fn reset(&mut self, from: usize, to: usize) {
        for no in 0..self.links.len() {
            let [opener, acceptor] = &self.links[no].ends;
            if opener.at == from && acceptor.at == to && !self.links[no].lost && !opener.down {
                self.links[no].lost = true;
                self.after(HOP_US, Happening::LinkDown { link: no, end: 0 });
                self.after(HOP_US, Happening::LinkDown { link: no, end: 1 });
            }
        }
    }

    /// From the next DATA on, ring frames from one kernel to another go no further than the network's buffers.
    pub fn hold(&mut self, from: usize, to: usize) {
        self.holds.insert((from, to));
    }

    /// They go on, in their order.
    pub fn release(&mut self, from: usize, to: usize) {
        self.holds.remove(&(from, to));
        for no in 0..self.links.len() {
            for end in 0..2 {
                let link = &mut self.links[no];
                if (link.ends[end].at, link.ends[1 - end].at) != (from, to) || link.lost {
                    continue;
                }
                let (of, id) = (link.ends[end].member, link.ends[end].id);
                for message in std::mem::take(&mut link.ends[end].held) {
                    let input = Input::Written { link: id, cost: message.cost() };
                    self.after(1, Happening::Input { at: from, of: Some(of), input });
                    self.after(HOP_US, Happening::Frame { link: no, end: 1 - end, message });
                }
            }
        }
    }

    /// Nothing passes from one kernel to another. Links notice when their bytes are not acknowledged.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
        self.lose_links(|a, b| (a, b) == (from, to) || (b, a) == (from, to));
    }

    fn lose_links(&mut self, affected: impl Fn(usize, usize) -> bool) {
        let silence_us = self.config.silence_ms * 1_000;
        for no in 0..self.links.len() {
            let link = &mut self.links[no];
            if affected(link.ends[0].at, link.ends[1].at) && !link.lost {
                link.lost = true;
                self.after(silence_us, Happening::LinkDown { link: no, end: 0 });
                self.after(silence_us, Happening::LinkDown { link: no, end: 1 });
            }
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// A process ends. Its machine tells those it spoke with, unless it lost power.
    pub fn kill(&mut self, at: usize, dark: bool) {
        let peer = self.kernels[at].member.id();
        self.kernels[at].alive = false;
        self.kernels[at].dark = dark;
        if dark {
            self.lose_links(|a, b| a == at || b == at);
            return;
        }
        let links: Vec<_> = self.kernels[at].links.keys().copied().collect();
        for link in links {
            self.close(at, link);
        }
        for other in (0..self.kernels.len()).filter(|other| *other != at) {
            if self.connects(at, other) {
                self.after(HOP_US, Happening::Input { at: other, of: None, input: Input::Reset { peer } });
            }
        }
    }
}
