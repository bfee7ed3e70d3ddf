//! Whether a download that ended early is tried again, and when.

use std::time::Duration;

use ureq::http::StatusCode;

/// Attempts in a row that bring little before giving up. As an attempt that brings more brings so much, and a file is
/// not endless, there is an end to them all.
const ATTEMPTS: u32 = 5;
/// Bytes that an attempt must bring to be no waste of time.
const WORTH: u64 = 1 << 20;
/// Shortest time between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time for which a server's `Retry-After` is heeded; one that asks for more is asked by the user another day.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an attempt ended early.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cause {
    /// The connection was cut, or there was none.
    Connection,
    /// The server cannot answer now, and may say when it can.
    Busy(Option<Duration>),
}

/// Whether this status is one that goes away, and when, by the header `Retry-After` in seconds. A date in that header
/// is not heeded.
pub(super) fn busy(status: StatusCode, retry_after: Option<&str>) -> Option<Cause> {
    let passes = status.is_server_error()
        || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY].contains(&status);
    let after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    passes.then_some(Cause::Busy(after))
}

/// What the attempts so far have brought.
#[derive(Default)]
pub(super) struct Retries {
    /// Attempts in a row that brought little.
    idle: u32,
    /// Whether one has brought anything.
    grown: bool,
}

impl Retries {
    /// The time until the next attempt, after one that has brought `bytes`; `None` to give up. Where no connection has
    /// brought a byte there is no network, or none to that server, and trying again would only hide that.
    pub(super) fn pause(&mut self, bytes: u64, cause: &Cause) -> Option<Duration> {
        self.grown |= bytes > 0;
        self.idle = if bytes >= WORTH { 0 } else { self.idle + 1 };
        let own = Duration::from_secs(u64::from((self.idle.saturating_sub(1)).pow(2))).max(PAUSE);
        match *cause {
            _ if self.idle == ATTEMPTS => None,
            Cause::Connection => self.grown.then_some(own),
            Cause::Busy(None) => Some(own),
            Cause::Busy(Some(asked)) => (asked <= PATIENCE).then_some(asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The pauses until there is no further attempt, if each brings so many bytes and ends alike.
    fn pauses(bytes: u64, cause: Cause) -> Vec<Duration> {
        let mut retries = Retries::default();
        std::iter::from_fn(|| retries.pause(bytes, &cause)).take(100).collect()
    }

    #[test]
    fn a_server_that_sends_a_byte_and_cuts_is_given_up() {
        let growing = [PAUSE, SECOND, 4 * SECOND, 9 * SECOND];
        assert_eq!(pauses(1, Cause::Connection), growing);
        assert_eq!(pauses(0, Cause::Busy(None)), growing);
        assert_eq!(pauses(0, Cause::Connection), []);
        // As long as it gets on it is not given up, but for the length of the file.
        assert_eq!(pauses(WORTH, Cause::Connection), [PAUSE; 100]);
    }

    #[test]
    fn a_server_is_given_the_time_that_it_asks_for_within_reason() {
        assert_eq!(pauses(0, Cause::Busy(Some(3 * SECOND))), [3 * SECOND; 4]);
        assert_eq!(pauses(0, Cause::Busy(Some(61 * SECOND))), []);
        let cause = |status: u16, after| busy(StatusCode::from_u16(status).unwrap(), after);
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert_eq!(cause(status, Some(" 7")), Some(Cause::Busy(Some(7 * SECOND))));
            assert_eq!(cause(status, Some("Fri, 31 Dec 2026 23:59:59 GMT")), Some(Cause::Busy(None)));
        }
        for status in [400, 401, 403, 404, 410] {
            assert_eq!(cause(status, Some("1")), None);
        }
    }
}
