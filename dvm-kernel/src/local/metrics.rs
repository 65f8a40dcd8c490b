//! What this kernel tells of itself in numbers: what the [tally](crate::tally) counted, and what is measured when somebody
//! asks. Names and meanings are promises; docs/metrics.md lists them.

use super::Server;
use crate::plugins::InstanceFigures;
use crate::ring::Depths;
use crate::tally::{LAPS_US, Tally};
use dvm_core::ids::{MemberId, Name};
use dvm_core::state::{InstanceState, State};
use dvm_core::view::Label;
use dvm_core::{Member, Phase};
use dvm_plugin_api::client::KINDS;
use dvm_plugin_api::local::{Answer, Failure, FailureCode, MetricDoc, MetricKind, SampleDoc};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What the member knows, copied out at one moment.
struct Seen {
    me: MemberId,
    state: State,
    suspected: usize,
}

fn see(member: &Member, now: dvm_core::ids::Time) -> Option<Seen> {
    let suspected = member.members_status(now).iter().filter(|status| status.suspected).count();
    Some(Seen { me: member.id(), state: member.state()?.clone(), suspected })
}

impl Server {
    pub(super) async fn metrics(self: &Rc<Self>) -> Result<Answer, Failure> {
        self.catch_up();
        let seen = self.ring.look(see).await?;
        let seen = seen.ok_or_else(|| Failure::new(FailureCode::NoDvm, "this kernel is not a member"))?;
        let depths = self.ring.depths().await?;
        let figures = self.figures().await.instances;
        let mut list = List::default();
        self.about_ring(&mut list, &seen, depths);
        self.about_readers(&mut list);
        about_plugins(&mut list, &seen, &figures);
        Ok(Answer::Metrics(list.metrics))
    }

    /// One more event of a kind was told.
    pub(super) fn count_event(&self, kind: &'static str) {
        *self.told.borrow_mut().entry(kind).or_default() += 1;
    }

    fn about_ring(&self, list: &mut List, seen: &Seen, depths: Depths) {
        let (tally, state) = (&self.shared.tally, &seen.state);
        let Tally { ring_out, ring_in, .. } = tally;
        let name = self.identity.borrow().name.clone();
        let who = [("dvm", &*self.dvm), ("member", &name), ("version", env!("CARGO_PKG_VERSION"))];
        list.gauge("dvm_kernel_info", "Who tells; always 1.").with(&who, 1);
        list.gauge("dvm_uptime_seconds", "Seconds since the kernel started.")
            .value_of(self.clock.now().0 as f64 / 1e6);
        list.gauge("dvm_index", "Index of the last entry that took effect here.").value(state.index.0);
        list.gauge("dvm_epoch", "Epoch of the view.").value(state.view.id.epoch.0);
        list.gauge("dvm_view_members", "Members of the view.").value(state.view.size() as u64);
        list.gauge("dvm_view_confirmed", "1 while the view is confirmed.")
            .value(u64::from(state.view.label == Label::Confirmed));
        list.gauge("dvm_blocked", "1 while this member has no quorum.")
            .value(u64::from(self.feed.phase() == Phase::Blocked));
        list.gauge("dvm_suspected_members", "Members that this one suspects.").value(seen.suspected as u64);
        list.counter("dvm_views_total", "Views installed.").value(tally.views.get());
        list.counter("dvm_suspicions_total", "Times that this member came to suspect another.")
            .value(tally.suspicions.get());
        list.counter("dvm_entries_total", "Entries of the history that took effect here.")
            .value(tally.entries.get());
        list.counter("dvm_ring_frames_sent_total", "Ring frames placed on links.")
            .value(ring_out.things.get());
        list.counter("dvm_ring_sent_bytes_total", "Bytes of those frames, before encryption.")
            .value(ring_out.bytes.get());
        list.counter("dvm_ring_frames_received_total", "Ring frames that came.").value(ring_in.things.get());
        list.counter("dvm_ring_received_bytes_total", "Bytes of those frames, after decryption.")
            .value(ring_in.bytes.get());
        list.counter("dvm_ring_links_total", "Ring links that came about.").value(tally.links.get());
        list.gauge("dvm_ring_links", "Ring links that stand.").value(depths.links as u64);
        list.gauge("dvm_ring_queued_bytes", "Bytes on ring links that the sockets did not take yet.")
            .value(depths.queued_bytes);
        list.counter("dvm_control_messages_sent_total", "Control messages for other members.")
            .value(tally.control_out.get());
        list.counter("dvm_control_messages_received_total", "Control messages from other members.")
            .value(tally.control_in.get());
        list.histogram(
            "dvm_lap_seconds",
            "From an own change going onto the ring until it is stable and took effect here.",
        )
        .laps(tally);
        list.gauge("dvm_requests_waiting", "Changes proposed here whose end is not known.")
            .value(depths.waiting as u64);
        list.counter("dvm_requests_total", "Changes proposed here, by how they ended.")
            .with(&[("outcome", "done")], tally.done.get())
            .with(&[("outcome", "refused")], tally.refused.get())
            .with(&[("outcome", "unknown")], tally.unknown.get());
    }

    fn about_readers(&self, list: &mut List) {
        let tally = &self.shared.tally;
        let (entries, bytes) = self.mirror.borrow().kept();
        list.gauge("dvm_feed_entries", "What happened and was not looked at by clients or plug-ins yet.")
            .value(self.feed.depth() as u64);
        list.counter("dvm_feed_overflows_total", "Times that readers fell behind and began anew.")
            .value(tally.overflows.get());
        list.gauge("dvm_plugin_queue", "What waits for the thread of this kernel that cares for plug-ins.")
            .value(self.outbox.borrow().len() as u64);
        list.gauge("dvm_history_entries", "Entries of the history that clients can still read here.")
            .value(entries as u64);
        list.gauge("dvm_history_bytes", "Bytes of those entries, about.").value(bytes);
        list.gauge("dvm_clients", "Clients that are connected.").value(self.clients.get() as u64);
        list.counter("dvm_clients_total", "Clients that connected.").value(tally.clients.get());
        list.gauge("dvm_subscribers", "Subscriptions to events.").value(self.subscribers.get() as u64);
        list.gauge("dvm_client_requests_waiting", "Requests and subscriptions of clients under way.")
            .value(self.unfinished.get() as u64);
        list.counter("dvm_client_requests_total", "Requests of clients.").value(tally.questions.get());
        let told = self.told.borrow();
        let mut events = list.counter("dvm_events_total", "Events told here, by kind.");
        // `overflow` and `detached` are each subscriber's own.
        for (kind, _) in KINDS.iter().filter(|(kind, _)| !matches!(*kind, "overflow" | "detached")) {
            events = events.with(&[("kind", kind)], told.get(kind).copied().unwrap_or_default());
        }
        list.counter("dvm_transfers_total", "Libraries, states and state copies between kernels.")
            .with(&[("direction", "received")], tally.bulk_in.things.get())
            .with(&[("direction", "sent")], tally.bulk_out.things.get());
        list.counter("dvm_transfer_bytes_total", "Their bytes.")
            .with(&[("direction", "received")], tally.bulk_in.bytes.get())
            .with(&[("direction", "sent")], tally.bulk_out.bytes.get());
    }
}

fn about_plugins(list: &mut List, seen: &Seen, figures: &BTreeMap<Name, InstanceFigures>) {
    const STATES: [(InstanceState, &str); 4] = [
        (InstanceState::Keeping, "keeping"),
        (InstanceState::Starting, "starting"),
        (InstanceState::Running, "running"),
        (InstanceState::Failed, "failed"),
    ];
    let plugins = || seen.state.plugins.iter().map(|(name, plugin)| (&**name, plugin));
    let mut instances =
        list.gauge("dvm_plugin_instances", "Instances of a plug-in on all members, by state.");
    for (name, plugin) in plugins() {
        for (state, word) in STATES {
            let count = plugin.instances.values().filter(|instance| instance.state == state).count();
            instances = instances.with(&[("plugin", name), ("state", word)], count as u64);
        }
    }
    let mut primary = list.gauge("dvm_plugin_primary", "1 where the primary of a plug-in is this member.");
    for (name, plugin) in plugins().filter(|(_, plugin)| plugin.spec.mode.has_primary()) {
        primary = primary.with(&[("plugin", name)], u64::from(plugin.primary == Some(seen.me)));
    }
    let mut restarts = list.counter("dvm_plugin_restarts_total", "Restarts of instances, on all members.");
    for (name, plugin) in plugins() {
        restarts = restarts.with(&[("plugin", name)], plugin.restarts);
    }
    type Figure = (&'static str, MetricKind, &'static str, fn(&InstanceFigures) -> u64);
    const OWN: [Figure; 5] = [
        ("dvm_plugin_running", MetricKind::Gauge, "1 while this member's instance has a process.", |one| {
            u64::from(one.pid != 0)
        }),
        (
            "dvm_plugin_applied_index",
            MetricKind::Gauge,
            "Highest index that this member's instance has applied.",
            |one| one.applied,
        ),
        (
            "dvm_plugin_waiting",
            MetricKind::Gauge,
            "Commands and events that this member's instance has not answered, or keeps as a standby.",
            |one| one.behind,
        ),
        (
            "dvm_plugin_callbacks_total",
            MetricKind::Counter,
            "Callbacks that this member's instance has answered.",
            |one| one.callbacks,
        ),
        (
            "dvm_plugin_failures_total",
            MetricKind::Counter,
            "Times that this member's instance failed.",
            |one| one.failures,
        ),
    ];
    for (metric, kind, help, figure) in OWN {
        let mut added = list.add(metric, kind, help);
        for (name, one) in figures {
            added = added.with(&[("plugin", name)], figure(one));
        }
    }
}

/// The metrics told so far.
#[derive(Default)]
struct List {
    metrics: Vec<MetricDoc>,
}

impl List {
    fn add(&mut self, name: &str, kind: MetricKind, help: &str) -> Added<'_> {
        let metric = MetricDoc { name: name.into(), kind, help: help.into(), samples: Vec::new() };
        self.metrics.push(metric);
        Added(&mut self.metrics.last_mut().expect("just pushed").samples)
    }

    fn counter(&mut self, name: &str, help: &str) -> Added<'_> {
        self.add(name, MetricKind::Counter, help)
    }

    fn gauge(&mut self, name: &str, help: &str) -> Added<'_> {
        self.add(name, MetricKind::Gauge, help)
    }

    fn histogram(&mut self, name: &str, help: &str) -> Added<'_> {
        self.add(name, MetricKind::Histogram, help)
    }
}

/// Where the values of a metric go.
struct Added<'a>(&'a mut Vec<SampleDoc>);

impl Added<'_> {
    fn value(self, value: u64) {
        self.value_of(value as f64);
    }

    fn value_of(self, value: f64) {
        self.push("", &[], value);
    }

    fn with(self, labels: &[(&str, &str)], value: u64) -> Self {
        self.push("", labels, value as f64)
    }

    fn laps(mut self, tally: &Tally) {
        let (upto, sum_us) = tally.laps.read();
        for (bound, count) in LAPS_US.iter().zip(upto) {
            let bound = (*bound as f64 / 1e6).to_string();
            self = self.push("_bucket", &[("le", &bound)], count as f64);
        }
        let count = upto[LAPS_US.len()] as f64;
        self.push("_bucket", &[("le", "+Inf")], count).push("_sum", &[], sum_us as f64 / 1e6).push(
            "_count",
            &[],
            count,
        );
    }

    fn push(self, suffix: &str, labels: &[(&str, &str)], value: f64) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.0.push(SampleDoc { suffix: suffix.into(), labels, value });
        self
    }
}
