//! Panics of code that is the application's: each is told to whom it concerns, with its place, and makes no noise.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of this thread happened. The standard library tells it to the panic hook alone.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes the places of panics while [`caught`] runs, and keeps their noise from standard error. Panics elsewhere go to the
/// hook that was there before.
pub(crate) fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNNING.get() {
                PLACE.set(info.location().map(ToString::to_string));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs what is the application's.
///
/// # Errors
/// It panicked: the message and the place.
pub(crate) fn caught<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    install();
    let before = RUNNING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    RUNNING.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message");
        let place = PLACE.take().map(|place| format!(" at {place}")).unwrap_or_default();
        format!("panicked{place}: {text}")
    })
}
