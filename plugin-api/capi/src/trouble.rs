//! What went wrong, in the form that C asks for.

use dvm_plugin_api::local::{Failure, FailureCode};
use serde_json::json;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};

/// Beyond the exit codes of the command line.
const ENDED: c_int = -9;
const FORKED: c_int = -10;
const PARTITION_LOST: c_int = -11;

thread_local! {
    /// The last failure in this thread that had no handle to be remembered in.
    pub(crate) static LAST_OPEN: RefCell<Trouble> = RefCell::new(Trouble::default());
}

/// A failure with the code and the texts that C is given.
#[derive(Debug)]
pub(crate) struct Trouble {
    code: c_int,
    text: CString,
    json: CString,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { code: 0, text: CString::default(), json: c_text("{}") }
    }
}

impl Trouble {
    fn new(code: c_int, word: &str, failure: &Failure) -> Self {
        let Failure { code: _, message, cause, hint } = failure;
        let mut text = message.clone();
        if let Some(cause) = cause {
            text = format!("{text} ({cause})");
        }
        if let Some(hint) = hint {
            text = format!("{text}; {hint}");
        }
        let json = json!({"code": word, "exit": failure.code.exit(), "message": message, "cause": cause, "hint": hint});
        Self { code, text: c_text(&text.replace('\n', " ")), json: c_text(&json.to_string()) }
    }

    /// The call makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure::new(FailureCode::Usage, message).into()
    }

    /// A required argument is NULL.
    pub(crate) fn null(what: &str) -> Self {
        Self::usage(format!("{what} is NULL"))
    }

    /// What came is no answer to what was asked.
    pub(crate) fn unexpected() -> Self {
        Failure::new(FailureCode::Failure, "the kernel answered what was not asked for")
            .hint("are libdvm and dvm-kernel of one version?")
            .into()
    }

    /// The stream has ended in order.
    pub(crate) fn ended() -> Self {
        let failure = Failure::new(FailureCode::Failure, "the DVM was halted, and all its events were told")
            .hint("subscribe again once it is up");
        Self::new(ENDED, "ended", &failure)
    }

    /// Refuses every process but the one that made the handle or the instance, as `what` says: a forked one would read from
    /// the same socket. `hint` is what to do with it there.
    pub(crate) fn unless_here(owner: u32, what: &str, hint: &str) -> Result<(), Self> {
        if owner == std::process::id() {
            return Ok(());
        }
        let failure = Failure::new(FailureCode::Failure, format!("this {what} belongs to process {owner}"))
            .cause(format!("process {} was forked from it, and shares its sockets", std::process::id()))
            .hint(hint);
        Err(Self::new(FORKED, "forked", &failure))
    }

    /// The plug-in is no more, and its instance has ended in order.
    pub(crate) fn unloaded(plugin: &str) -> Self {
        let failure = Failure::new(
            FailureCode::Failure,
            format!("{plugin} was unloaded, and its instance here has ended"),
        )
        .hint("attach again once it is loaded");
        Self::new(ENDED, "ended", &failure)
    }

    /// Our own mistake.
    pub(crate) fn panic(panic: &(dyn Any + Send)) -> Self {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Failure::new(FailureCode::Failure, "a mistake in libdvm itself")
            .cause(said.unwrap_or("it says no more"))
            .hint("close the handle, open another, and report this")
            .into()
    }

    pub(crate) fn code(&self) -> c_int {
        self.code
    }

    pub(crate) fn text(&self) -> *const c_char {
        self.text.as_ptr()
    }

    pub(crate) fn json(&self) -> *const c_char {
        self.json.as_ptr()
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            FailureCode::PartitionLost => PARTITION_LOST,
            code => -c_int::from(code.exit()),
        };
        Self::new(code, failure.code.word(), &failure)
    }
}

/// A text as C has it. No text of ours has a zero inside; one that came from elsewhere loses it.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).expect("the zeros were taken out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn told(text: *const c_char) -> String {
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_failure_in_one_line_and_as_json() {
        let failure = Failure::new(FailureCode::NoDvm, "gone").cause("killed\nby you").hint("start it");
        let trouble = Trouble::from(failure);
        assert_eq!(trouble.code(), -3);
        assert_eq!(told(trouble.text()), "gone (killed by you); start it");
        let json: serde_json::Value = serde_json::from_str(&told(trouble.json())).expect("JSON");
        assert_eq!(
            (&json["code"], &json["exit"], &json["hint"]),
            (&"no-dvm".into(), &3.into(), &"start it".into())
        );
    }

    #[test]
    fn before_any_failure_there_is_an_empty_one() {
        assert_eq!(
            (told(Trouble::default().text()), told(Trouble::default().json())),
            (String::new(), "{}".into())
        );
    }
}
