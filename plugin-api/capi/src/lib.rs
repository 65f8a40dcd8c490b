//! `libdvm`: the client for C, and for all that speaks C. `dvm.h` says what each function promises and wants.
//!
//! What happens is the business of [`dvm_plugin_api::client`]. Here is the border alone: pointers become references once
//! they were looked at, panics become failures, and a process that has not opened a handle is kept away from it.
#![expect(clippy::missing_safety_doc, reason = "dvm.h says what every function wants of its arguments")]

mod event;
mod handle;
mod trouble;

use dvm_plugin_api::client::Families;
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
        dvm.subscribe(Families(mask), unsafe { text(cursor, "the cursor") }?)?;
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
    let mut reply = unsafe { reply.as_mut() };
    // Whatever fails, the caller may free it.
    if let Some(reply) = &mut reply {
        **reply = std::ptr::null_mut();
    }
    let call = |dvm: &Dvm| {
        let plugin = unsafe { text(plugin, "the plug-in's name") }?;
        let json = unsafe { text(json, "the command") }?;
        let (Some(plugin), Some(json)) = (plugin, json) else {
            return Err(Trouble::null("the plug-in's name, or the command"));
        };
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        let answer = dvm.call(plugin, json, timeout)?;
        if let Some(reply) = reply {
            *reply = answer.into_raw();
        }
        Ok(OK)
    };
    unsafe { with(dvm, call) }
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

/// Frees a reply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dvm_free(text: *mut c_void) {
    if !text.is_null() {
        // `dvm_call` gave it out.
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

/// A string of the caller's; none for NULL.
unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Trouble> {
    if text.is_null() {
        return Ok(None);
    }
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|error| Trouble::usage(format!("{what} is not UTF-8: {error}")))
}

unsafe fn free(dvm: *mut Dvm) {
    let dvm = unsafe { Box::from_raw(dvm) };
    // There is nobody left to tell of a panic.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(dvm)));
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
