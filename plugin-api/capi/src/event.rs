//! Events as C sees them.

use crate::trouble::c_text;
use dvm_plugin_api::client::Families;
use dvm_plugin_api::local::EventDoc;
use serde_json::Value;
use std::ffi::{CString, c_char, c_void};
use std::ptr::null;

/// `dvm_event_t`.
#[repr(C)]
#[derive(Debug)]
pub struct CEvent {
    index: u64,
    epoch: u64,
    family: u64,
    last_heard_ms: i64,
    kind: *const c_char,
    member: *const c_char,
    plugin: *const c_char,
    cause: *const c_char,
    noticed_by: *const c_char,
    label: *const c_char,
    lineage: *const c_char,
    view: *const c_char,
    cursor: *const c_char,
    time: *const c_char,
    json: *const c_char,
    key: *const c_char,
    reserved: [*const c_void; 7],
}

/// An event that was told, with the strings that C looks at.
#[derive(Debug)]
pub(crate) struct Told {
    index: u64,
    epoch: u64,
    family: Families,
    last_heard_ms: i64,
    kind: CString,
    member: Option<CString>,
    plugin: Option<CString>,
    cause: Option<CString>,
    noticed_by: Option<CString>,
    label: CString,
    lineage: CString,
    view: CString,
    cursor: CString,
    time: CString,
    json: CString,
    key: Option<CString>,
}

impl Told {
    pub(crate) fn new(event: &EventDoc) -> Self {
        let field = |name: &str| event.more.get(name).and_then(Value::as_str).map(c_text);
        let heard = event.more.get("last_heard_ms").and_then(Value::as_i64);
        Self {
            index: event.index.unwrap_or(0),
            epoch: event.epoch,
            family: Families::of_kind(&event.kind),
            last_heard_ms: heard.unwrap_or(-1),
            kind: c_text(&event.kind),
            member: field("member"),
            plugin: field("plugin"),
            cause: field("cause"),
            noticed_by: field("noticed_by"),
            label: c_text(&event.label),
            lineage: c_text(&event.lineage),
            view: c_text(&event.view),
            cursor: c_text(&event.cursor),
            time: c_text(&event.time),
            json: c_text(&serde_json::to_string(event).expect("an event is plain data")),
            key: field("key"),
        }
    }

    pub(crate) fn family(&self) -> Families {
        self.family
    }

    /// What C is given; it points into this.
    pub(crate) fn view(&self) -> CEvent {
        let optional = |text: &Option<CString>| text.as_ref().map_or(null(), |text| text.as_ptr());
        CEvent {
            index: self.index,
            epoch: self.epoch,
            family: self.family.0,
            last_heard_ms: self.last_heard_ms,
            kind: self.kind.as_ptr(),
            member: optional(&self.member),
            plugin: optional(&self.plugin),
            cause: optional(&self.cause),
            noticed_by: optional(&self.noticed_by),
            label: self.label.as_ptr(),
            lineage: self.lineage.as_ptr(),
            view: self.view.as_ptr(),
            cursor: self.cursor.as_ptr(),
            time: self.time.as_ptr(),
            json: self.json.as_ptr(),
            key: optional(&self.key),
            reserved: [null(); 7],
        }
    }
}
