//! Ctrl-C and SIGTERM end work in good order; a second one at once.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use unfreeze::{Error, Result, learner::CancelToken};

/// What a signal cancels.
static TOKEN: Mutex<Option<CancelToken>> = Mutex::new(None);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Lets signals cancel `token`, and no longer an earlier one. A signal that came before cancels it at once.
pub fn cancels(token: CancelToken) -> Result<()> {
    if ASKED.load(Ordering::SeqCst) {
        token.cancel();
    }
    let first = TOKEN.lock().unwrap_or_else(PoisonError::into_inner).replace(token).is_none();
    if !first {
        return Ok(());
    }
    let handler = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(1);
        }
        if let Some(token) = &*TOKEN.lock().unwrap_or_else(PoisonError::into_inner) {
            token.cancel();
        }
        errln!("\ninterrupted: ending in good order (once more to end at once)");
    };
    ctrlc::set_handler(handler).map_err(|error| Error::io("the handler of signals", std::io::Error::other(error)))
}
