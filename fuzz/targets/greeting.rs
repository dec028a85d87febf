//! The first bytes of a connection, as the listener filters look at them: in however many pieces they come,
//! the same is found, and nobody waits for a byte that need not come.

#![no_main]

use attache::listener::filters::http_inspector;
use attache::listener::filters::proxy_protocol::{self, Parsed};
use attache::tls::client_hello;
use libfuzzer_sys::fuzz_target;

/// Beyond so many bytes not every beginning is looked at, but these and the last.
const EACH: usize = 512;
/// A larger step than in any header, so that pieces end at odd places.
const STEP: usize = 97;

/// What a filter says of a beginning.
#[derive(Clone, Debug, PartialEq)]
enum Said<T> {
    /// It has what it looks for.
    Found(T),
    /// It waits until so many bytes are there.
    Need(usize),
    /// It is something else, or broken.
    Other(T),
}

fuzz_target!(|bytes: &[u8]| {
    pieces(bytes, client_hello::MAX_BYTES, |bytes| {
        use client_hello::Inspected;
        match client_hello::inspect(bytes) {
            Inspected::Need(more) => Said::Need(more),
            Inspected::Hello(hello) => {
                let name = hello.server_name.as_deref();
                assert!(name.is_none_or(|name| !name.is_empty() && name == name.to_ascii_lowercase()));
                Said::Found(Inspected::Hello(hello))
            }
            other => Said::Other(other),
        }
    });
    pieces(bytes, http_inspector::MAX_BYTES, |bytes| {
        use http_inspector::Inspected;
        match http_inspector::inspect(bytes) {
            Inspected::Need(more) => Said::Need(more),
            found @ Inspected::Http(_) => Said::Found(found),
            other @ Inspected::NotHttp => Said::Other(other),
        }
    });
    pieces(bytes, proxy_protocol::MAX_BYTES, |bytes| {
        match proxy_protocol::parse(bytes) {
            Parsed::Need(more) => Said::Need(more),
            Parsed::Malformed(why) => {
                assert!(!why.is_empty());
                Said::Other(Parsed::Malformed(why))
            }
            Parsed::Header { length, ends } => {
                assert!(0 < length && length <= bytes.len(), "it takes what is not there");
                if let Some((source, destination)) = ends {
                    assert_eq!(source.is_ipv4(), destination.is_ipv4());
                }
                // What comes after the header is not its business.
                assert_eq!(
                    proxy_protocol::parse(&bytes[..length]),
                    Parsed::Header { length, ends }
                );
                Said::Found(Parsed::Header { length, ends })
            }
        }
    });
});

/// Lets `filter` look at the beginnings of `bytes` and at all of them. A filter looks for the first time once
/// a byte is there.
fn pieces<T: PartialEq + std::fmt::Debug>(bytes: &[u8], most: usize, filter: impl Fn(&[u8]) -> Said<T>) {
    if bytes.is_empty() {
        return;
    }
    let whole = filter(bytes);
    let mut awaited = 1;
    for n in (1..bytes.len()).filter(|n| *n <= EACH || n % STEP == 0) {
        match filter(&bytes[..n]) {
            Said::Need(more) => {
                assert!(n < more && more <= most, "{n} bytes are there, {more} are needed");
                awaited = awaited.max(more);
            }
            said @ Said::Found(_) => {
                assert!(awaited <= n, "{awaited} bytes were waited for, {n} say {said:?}");
                assert_eq!(said, whole, "after {n} bytes");
                return;
            }
            // It may be known sooner than was said: who waits finds out a little later.
            said @ Said::Other(_) => {
                assert_eq!(said, whole, "after {n} bytes");
                return;
            }
        }
    }
    if let Said::Found(_) = whole {
        assert!(awaited <= bytes.len(), "{awaited} bytes were waited for");
    }
}
