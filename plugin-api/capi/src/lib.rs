//! `libdvm`: the client for C, and for all that speaks C. `dvm.h` says what each function promises and wants.
//!
//! What happens is the business of [`dvm_plugin_api::client`]. Here is the border alone: pointers become references once
//! they were looked at, panics become failures, and a process that has not opened a handle is kept away from it.
#![expect(clippy::missing_safety_doc, reason = "dvm.h says what every function wants of its arguments")]

mod attached;
mod event;
mod handle;
mod state;
mod trouble;

use attached::Attached;
use dvm_plugin_api::client::Families;
use dvm_plugin_api::host::Module;
use event::CEvent;
use handle::{Dvm, EventFn};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use trouble::{LAST_OPEN, Trouble};

/// All went well.
const OK: c_int = 0;

/// Opens a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_open(dvm: *mut *mut Dvm, uri: *const c_char) -> c_int {
    let open = || {
        let place = unsafe { dvm.as_mut() }.ok_or_else(|| Trouble::null("where the handle goes"))?;
        *place = std::ptr::null_mut();
        let uri = unsafe { text(uri, "the URI") }?;
        *place = Box::into_raw(Box::new(Dvm::open(uri)?));
        Ok(OK)
    };
    guarded(open).unwrap_or_else(without_handle)
}

/// The descriptor of a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_fd(dvm: *mut Dvm) -> c_int {
    unsafe { with(dvm, |dvm| Ok(dvm.fd())) }
}

/// Asks for events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_subscribe(dvm: *mut Dvm, mask: u64, cursor: *const c_char) -> c_int {
    let subscribe = |dvm: &Dvm| {
        dvm.subscribe(Families(mask), None, unsafe { text(cursor, "the cursor") }?)?;
        Ok(OK)
    };
    unsafe { with(dvm, subscribe) }
}

/// The next event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_next_event(dvm: *mut Dvm, event: *mut CEvent) -> c_int {
    let next = |dvm: &Dvm| {
        if event.is_null() {
            return Err(Trouble::null("where the event goes"));
        }
        let Some(next) = dvm.next_event()? else { return Ok(0) };
        // The caller's memory need not be initialized: it is written whole.
        unsafe { event.write(next) };
        Ok(1)
    };
    unsafe { with(dvm, next) }
}

/// Sets a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_on_event(
    dvm: *mut Dvm,
    mask: u64,
    function: Option<EventFn>,
    argument: *mut c_void,
) -> c_int {
    let set = |dvm: &Dvm| {
        let function = function.ok_or_else(|| Trouble::null("the callback"))?;
        dvm.on_event(Families(mask), function, argument)?;
        Ok(OK)
    };
    unsafe { with(dvm, set) }
}

/// Calls the callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_dispatch(dvm: *mut Dvm) -> c_int {
    let taken = unsafe { with(dvm, Dvm::dispatch) };
    if unsafe { dvm.as_ref() }.is_some_and(Dvm::closes_now) {
        unsafe { free(dvm) };
    }
    taken
}

/// One command to a plug-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_call(
    dvm: *mut Dvm,
    plugin: *const c_char,
    json: *const c_char,
    reply: *mut *mut c_char,
    timeout_ms: c_int,
) -> c_int {
    let call = |dvm: &Dvm, timeout| {
        let plugin = unsafe { needed(plugin, "the plug-in's name") }?;
        dvm.call(plugin, unsafe { needed(json, "the command") }?, timeout)
    };
    unsafe { give(dvm, reply, timeout_ms, call) }
}

/// A key's value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_key_get(
    dvm: *mut Dvm,
    key: *const c_char,
    fresh: c_int,
    value: *mut *mut c_char,
    version: *mut u64,
    timeout_ms: c_int,
) -> c_int {
    let get = |dvm: &Dvm, timeout| {
        let (value, found) = dvm.get(unsafe { needed(key, "the key") }?, fresh != 0, timeout)?;
        if let Some(version) = unsafe { version.as_mut() } {
            *version = found;
        }
        Ok(value)
    };
    unsafe { give(dvm, value, timeout_ms, get) }
}

/// Sets a key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_key_put(
    dvm: *mut Dvm,
    key: *const c_char,
    json: *const c_char,
    if_version: u64,
    version: *mut u64,
    timeout_ms: c_int,
) -> c_int {
    let put = |dvm: &Dvm| {
        let (key, json) = unsafe { (needed(key, "the key")?, needed(json, "the value")?) };
        let made = dvm.put(key, json, if_version, limit(timeout_ms))?;
        if let Some(version) = unsafe { version.as_mut() } {
            *version = made;
        }
        Ok(OK)
    };
    unsafe { with(dvm, put) }
}

/// Deletes a key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_key_delete(
    dvm: *mut Dvm,
    key: *const c_char,
    if_version: u64,
    timeout_ms: c_int,
) -> c_int {
    let delete = |dvm: &Dvm| {
        dvm.delete(unsafe { needed(key, "the key") }?, if_version, limit(timeout_ms))?;
        Ok(OK)
    };
    unsafe { with(dvm, delete) }
}

/// The keys.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_key_list(
    dvm: *mut Dvm,
    prefix: *const c_char,
    entries: *mut *mut c_char,
    timeout_ms: c_int,
) -> c_int {
    let list = |dvm: &Dvm, timeout| {
        let prefix = unsafe { text(prefix, "the prefix") }?;
        dvm.list(prefix.unwrap_or_default(), timeout)
    };
    unsafe { give(dvm, entries, timeout_ms, list) }
}

/// Asks for events, with changes of keys that begin so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_watch(
    dvm: *mut Dvm,
    mask: u64,
    prefix: *const c_char,
    cursor: *const c_char,
) -> c_int {
    let watch = |dvm: &Dvm| {
        let (prefix, cursor) = unsafe { (text(prefix, "the prefix")?, text(cursor, "the cursor")?) };
        dvm.subscribe(Families(mask) | Families::KEY, prefix, cursor)?;
        Ok(OK)
    };
    unsafe { with(dvm, watch) }
}

/// The status.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_status(dvm: *mut Dvm, status: *mut *mut c_char, timeout_ms: c_int) -> c_int {
    unsafe { give(dvm, status, timeout_ms, Dvm::status) }
}

/// The settings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_config(dvm: *mut Dvm, settings: *mut *mut c_char, timeout_ms: c_int) -> c_int {
    unsafe { give(dvm, settings, timeout_ms, Dvm::config) }
}

/// Changes a setting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_config_set(
    dvm: *mut Dvm,
    member: *const c_char,
    key: *const c_char,
    value: *const c_char,
    timeout_ms: c_int,
) -> c_int {
    let set = |dvm: &Dvm| {
        let (member, value) = unsafe { (text(member, "the member")?, text(value, "the value")?) };
        let key = unsafe { needed(key, "the setting's name") }?;
        dvm.config_set(member, key, value.unwrap_or_default(), limit(timeout_ms))?;
        Ok(OK)
    };
    unsafe { with(dvm, set) }
}

/// Takes the instance of a plug-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_attach(
    dvm: *mut Dvm,
    plugin: *const c_char,
    code: *const c_void,
    attached: *mut *mut Attached,
) -> c_int {
    let attach = |dvm: &Dvm| {
        let place = unsafe { attached.as_mut() }.ok_or_else(|| Trouble::null("where the instance goes"))?;
        *place = std::ptr::null_mut();
        let plugin = unsafe { needed(plugin, "the plug-in's name") }?;
        if code.is_null() {
            return Err(Trouble::null("the plug-in's table"));
        }
        let module = unsafe { Module::in_c(code) }.map_err(Trouble::usage)?;
        *place = Box::into_raw(Box::new(Attached::new(dvm, plugin, module)?));
        Ok(OK)
    };
    unsafe { with(dvm, attach) }
}

/// The descriptor of an instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_attached_fd(attached: *mut Attached) -> c_int {
    unsafe { with_attached(attached, |attached| Ok(attached.fd())) }
}

/// Makes the callbacks that are due.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_attached_run_pending(attached: *mut Attached) -> c_int {
    unsafe { run(attached, Attached::run_pending) }
}

/// Runs an instance until it is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_attached_wait(attached: *mut Attached, timeout_ms: c_int) -> c_int {
    unsafe { run(attached, |attached| attached.wait(limit(timeout_ms))) }
}

/// Gives an instance up, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_attached_end(attached: *mut Attached) {
    if let Some(attached) = unsafe { attached.as_ref() } {
        attached.end();
    }
}

/// The last failure of an instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_attached_error(attached: *mut Attached) -> *const c_char {
    match unsafe { attached.as_ref() } {
        Some(attached) => attached.error(),
        None => LAST_OPEN.with_borrow(Trouble::text),
    }
}

/// Gives an instance up, and lets go of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_detach(attached: *mut Attached) {
    if unsafe { attached.as_ref() }.is_some_and(|attached| !attached.closes_later()) {
        unsafe { free(attached) };
    }
}

/// The families of a kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_mask(kind: *const c_char) -> u64 {
    let mask = || Ok(unsafe { text(kind, "the kind") }?.map_or(0, |kind| Families::of_prefix(kind).0));
    guarded(mask).unwrap_or(0)
}

/// The member that tells the events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_through(dvm: *mut Dvm) -> *const c_char {
    let mut through = std::ptr::null();
    let look = |dvm: &Dvm| {
        through = dvm.through();
        Ok(OK)
    };
    unsafe { with(dvm, look) };
    through
}

/// The URI of the DVM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_uri(dvm: *mut Dvm) -> *const c_char {
    // It is no secret, and stays where it is: a forked child may look at it, too.
    unsafe { dvm.as_ref() }.map_or(std::ptr::null(), Dvm::uri)
}

/// The last failure as text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_error(dvm: *mut Dvm) -> *const c_char {
    unsafe { trouble(dvm, Trouble::text) }
}

/// The last failure as JSON.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_error_json(dvm: *mut Dvm) -> *const c_char {
    unsafe { trouble(dvm, Trouble::json) }
}

/// Frees a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_free(text: *mut c_void) {
    if !text.is_null() {
        // `give` gave it out.
        drop(unsafe { CString::from_raw(text.cast()) });
    }
}

/// Ends a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_close(dvm: *mut Dvm) {
    if unsafe { dvm.as_ref() }.is_some_and(|dvm| !dvm.closes_later()) {
        unsafe { free(dvm) };
    }
}

/// Does `work` with a handle that is there and is this process's own. What goes wrong is remembered there.
unsafe fn with(dvm: *const Dvm, work: impl FnOnce(&Dvm) -> Result<c_int, Trouble>) -> c_int {
    let Some(dvm) = (unsafe { dvm.as_ref() }) else { return without_handle(Trouble::null("the handle")) };
    let work = || {
        dvm.check_process()?;
        work(dvm)
    };
    guarded(work).unwrap_or_else(|trouble| dvm.fail(trouble))
}

/// The same with an instance.
unsafe fn with_attached(
    attached: *const Attached,
    work: impl FnOnce(&Attached) -> Result<c_int, Trouble>,
) -> c_int {
    let Some(attached) = (unsafe { attached.as_ref() }) else {
        return without_handle(Trouble::null("the instance"));
    };
    let work = || {
        attached.check_process()?;
        work(attached)
    };
    guarded(work).unwrap_or_else(|trouble| attached.fail(trouble))
}

/// Runs an instance, and frees it if a callback has detached it.
unsafe fn run(attached: *mut Attached, work: impl FnOnce(&Attached) -> Result<c_int, Trouble>) -> c_int {
    let ran = unsafe { with_attached(attached, work) };
    if unsafe { attached.as_ref() }.is_some_and(Attached::closes_now) {
        unsafe { free(attached) };
    }
    ran
}

/// Does `work` as [`with`] does, within a limit, and gives out the text that it makes. Whatever fails, the caller may free
/// what is in `place`.
unsafe fn give(
    dvm: *const Dvm,
    place: *mut *mut c_char,
    timeout_ms: c_int,
    work: impl FnOnce(&Dvm, Option<Duration>) -> Result<CString, Trouble>,
) -> c_int {
    let mut place = unsafe { place.as_mut() };
    if let Some(place) = &mut place {
        **place = std::ptr::null_mut();
    }
    let work = |dvm: &Dvm| {
        let made = work(dvm, limit(timeout_ms))?;
        if let Some(place) = place {
            *place = made.into_raw();
        }
        Ok(OK)
    };
    unsafe { with(dvm, work) }
}

/// Milliseconds of the caller's; negative ones are no limit.
fn limit(timeout_ms: c_int) -> Option<Duration> {
    u64::try_from(timeout_ms).ok().map(Duration::from_millis)
}

/// Does `work`; a panic, which is our own mistake, becomes a failure.
fn guarded<T>(work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    // After a panic nothing is used but what tells of it, or what stands by itself.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Trouble::panic(panic.as_ref())))
}

fn without_handle(trouble: Trouble) -> c_int {
    let code = trouble.code();
    LAST_OPEN.set(trouble);
    code
}

/// A text of the last failure: of a handle, or of this thread's last open.
unsafe fn trouble(dvm: *const Dvm, text: fn(&Trouble) -> *const c_char) -> *const c_char {
    match unsafe { dvm.as_ref() } {
        Some(dvm) => dvm.trouble(text),
        None => LAST_OPEN.with_borrow(text),
    }
}

/// A string that the caller must give.
unsafe fn needed<'a>(given: *const c_char, what: &str) -> Result<&'a str, Trouble> {
    unsafe { text(given, what) }?.ok_or_else(|| Trouble::null(what))
}

/// A string of the caller's; none for NULL.
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Trouble> {
    if text.is_null() {
        return Ok(None);
    }
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|error| Trouble::usage(format!("{what} is not UTF-8: {error}")))
}

unsafe fn free<T>(handle: *mut T) {
    let handle = unsafe { Box::from_raw(handle) };
    // There is nobody left to tell of a panic.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(handle)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_does_not_cross_the_border() {
        let trouble = guarded::<()>(|| panic!("oops")).expect_err("it panicked");
        assert_eq!(trouble.code(), -1);
        let text = unsafe { CStr::from_ptr(trouble.text()) }.to_str().expect("text");
        assert!(text.contains("mistake in libdvm") && text.contains("oops"), "{text}");
    }

    #[test]
    fn without_a_handle_there_is_a_failure_and_no_crash() {
        let null = std::ptr::null_mut();
        unsafe {
            assert_eq!(dvm_open(std::ptr::null_mut(), std::ptr::null()), -2);
            assert_eq!(
                (dvm_fd(null), dvm_dispatch(null), dvm_subscribe(null, 1, std::ptr::null())),
                (-2, -2, -2)
            );
            let nothing = std::ptr::null_mut();
            assert_eq!((dvm_attached_fd(nothing), dvm_attached_run_pending(nothing)), (-2, -2));
            dvm_attached_end(nothing);
            dvm_detach(nothing);
            assert_eq!(dvm_fd(null), -2);
            assert!(dvm_uri(null).is_null() && dvm_through(null).is_null());
            let text = CStr::from_ptr(dvm_error(null)).to_str().expect("text");
            assert_eq!(text, "the handle is NULL");
            dvm_close(null);
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let mut dvm = std::ptr::null_mut();
        assert_eq!(unsafe { dvm_open(&raw mut dvm, c"\xff".as_ptr()) }, -2);
        assert!(dvm.is_null());
    }
}
