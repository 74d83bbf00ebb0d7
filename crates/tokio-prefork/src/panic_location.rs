//! Catches a panic together with the place in the source where it happened, which `catch_unwind` alone does not tell.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use crate::text::panic_text;

/// A panic that was caught.
pub(crate) struct CaughtPanic {
    pub(crate) payload: Box<dyn Any + Send>,
    /// File, line and column of the panic: `src/main.rs:12:5`. `None` if the panic hook did not run, as after `resume_unwind`, or
    /// if the application has replaced the hook without calling the one before.
    pub(crate) location: Option<String>,
}

impl CaughtPanic {
    /// Returns the message of the panic.
    pub(crate) fn message(&self) -> String {
        panic_text(&*self.payload).into_owned()
    }
}

thread_local! {
    /// Whether this thread runs code whose panics are caught here.
    static IS_CATCHING: Cell<bool> = const { Cell::new(false) };
    /// Where the latest panic of that code happened.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Restores `IS_CATCHING` when it is dropped.
struct CatchingGuard(bool);

impl Drop for CatchingGuard {
    fn drop(&mut self) {
        IS_CATCHING.set(self.0);
    }
}

/// Calls `f`, and returns a panic in it as an error.
///
/// The first call adds a hook in front of the process's panic hook, which still runs for every panic.
pub(crate) fn catch_panic_with_location<T>(f: impl FnOnce() -> T) -> Result<T, CaughtPanic> {
    install_hook();
    let _guard = CatchingGuard(IS_CATCHING.replace(true));
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let location = LOCATION.try_with(|location| location.borrow_mut().take());
        CaughtPanic { payload, location: location.ok().flatten() }
    })
}

fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            record_location(info);
            previous(info);
        }));
    });
}

fn record_location(info: &PanicHookInfo<'_>) {
    // Not available while the thread ends, when nothing is caught any more.
    if !IS_CATCHING.try_with(Cell::get).unwrap_or(false) {
        return;
    }
    let location = info.location().map(ToString::to_string);
    let _ = LOCATION.try_with(|recorded| recorded.replace(location));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::panic, reason = "panics are what is tested")]
    fn location_and_message_of_a_panic_are_caught() {
        let line = line!() + 1;
        let caught = catch_panic_with_location(|| -> () { panic!("number {}", 7) });
        let caught = caught.expect_err("it panicked");
        assert_eq!(caught.message(), "number 7");
        let location = caught.location.expect("a location");
        assert!(location.contains(&format!("panic_location.rs:{line}:")), "{location}");
    }

    #[test]
    fn panic_without_the_hook_has_no_location() {
        let resumed = || -> () { std::panic::resume_unwind(Box::new("resumed")) };
        let caught = catch_panic_with_location(resumed).expect_err("it panicked");
        assert_eq!((caught.message().as_str(), caught.location), ("resumed", None));
    }

    #[test]
    fn result_without_a_panic_is_returned() {
        assert_eq!(catch_panic_with_location(|| 5).ok(), Some(5));
    }
}
