//! TLS sessions with one endpoint, kept by tickets (RFC 8446 section 2.2), so that the next connection saves the
//! certificates and their signatures.
//!
//! A resumed session is what the full handshake made of the same two configurations. Whenever the certificate,
//! the authorities, the names or the parameters of either side change, that side's configuration is a new one:
//! tickets go with the old, here with the [`Sessions`], at the server with its key. So nobody is taken for somebody
//! whom today's rules would not take, but for certificates that expire meanwhile: each side looks at their time.
//! Nothing is sent before the handshake is over (no early data), and each has a key exchange of its own: X25519
//! alone, since the session's secret has ML-KEM's share from the full handshake. Where the server does not resume
//! after all, its new configuration being there, that one connection has X25519 alone (as Envoy's have), and these
//! sessions end with it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption, Tls13ClientSessionValue,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, NamedGroup};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::config::ClientTls;
use super::names;

/// Tickets kept for one endpoint: each is used once, so this many connections may be made at the same time before
/// one of them needs a full handshake. Each takes 1 to 2 KB.
const MAX_TICKETS: usize = 16;

/// How to dial one endpoint: a cluster's configuration, and the endpoint's sessions under it.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Without sessions.
    base: Arc<ClientTls>,
    full: Arc<ClientConfig>,
    resuming: Option<Arc<ClientConfig>>,
    tickets: Arc<Tickets>,
}

/// The same tickets, under the configuration that resumes: what group a server takes of few says nothing of all.
#[derive(Debug)]
struct Resuming(Arc<Tickets>);

/// What is kept of an endpoint's sessions. Asked by rustls, with the name of the one server that there is.
#[derive(Debug, Default)]
struct Tickets(Mutex<Held>);

#[derive(Default)]
struct Held {
    tls13: VecDeque<Tls13ClientSessionValue>,
    tls12: Option<Tls12ClientSessionValue>,
    group: Option<NamedGroup>,
    /// When the first certificate of the endpoint's chain expires.
    until: Option<UnixTime>,
    /// The server did not resume: what may come now has ML-KEM's share no more.
    declined: bool,
    /// The server asked for ML-KEM's share where it resumed: the hello that has it saves the round trip.
    insists: bool,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("tls13", &self.tls13.len())
            .finish_non_exhaustive()
    }
}

impl Sessions {
    /// None yet, under a cluster's configuration, which has no resumption of its own; without `resumption` there
    /// will be none.
    pub fn new(base: &Arc<ClientTls>, resumption: bool) -> Self {
        let tickets = Arc::<Tickets>::default();
        let keeping = |config: &Arc<ClientConfig>, store: Arc<dyn ClientSessionStore>| {
            let mut config = ClientConfig::clone(config);
            config.resumption =
                Resumption::store(store).tls12_resumption(Tls12Resumption::SessionIdOrTickets);
            Arc::new(config)
        };
        let resuming = base.resuming.as_ref().filter(|_| resumption);
        Self {
            base: Arc::clone(base),
            full: match resumption {
                true => keeping(&base.full, Arc::clone(&tickets) as _),
                false => Arc::clone(&base.full),
            },
            resuming: resuming.map(|config| keeping(config, Arc::new(Resuming(Arc::clone(&tickets))))),
            tickets,
        }
    }

    /// Whether they are under this configuration, and go on.
    pub fn are_of(&self, base: &Arc<ClientTls>) -> bool {
        Arc::ptr_eq(&self.base, base) && !self.tickets.held().declined
    }

    /// What to shake hands with.
    pub(super) fn config(&self) -> &Arc<ClientConfig> {
        let may_be_brief =
            || (self.tickets.valid()).is_some_and(|held| !held.tls13.is_empty() && !held.insists);
        match &self.resuming {
            Some(resuming) if may_be_brief() => resuming,
            _ => &self.full,
        }
    }

    /// After a full handshake with what [`Self::config`] said: the sessions that it begins last no longer than this
    /// `chain`, or not at all if it was to resume one.
    pub(super) fn begin(&self, config: &Arc<ClientConfig>, chain: &[CertificateDer<'_>]) {
        self.end_if_resuming(config);
        let held = &mut *self.tickets.held();
        held.until = expiry(chain).filter(|_| !held.declined);
    }

    /// After a session was resumed by an exchange in `group`, in BoringSSL's words.
    pub(super) fn resumed(&self, group: Option<&str>) {
        if group == Some(names::HYBRID) {
            self.tickets.held().insists = true;
        }
    }

    /// After a handshake that did not resume what it was to resume, or failed: these sessions are over.
    pub(super) fn end_if_resuming(&self, config: &Arc<ClientConfig>) {
        let resuming = self.resuming.as_ref();
        if resuming.is_some_and(|resuming| Arc::ptr_eq(resuming, config)) {
            let held = &mut *self.tickets.held();
            held.declined = true;
            held.tls13.clear();
        }
    }
}

#[cfg(test)]
impl Sessions {
    /// What begins with all that can be had.
    pub(super) fn config_for_all(&self) -> &Arc<ClientConfig> {
        &self.full
    }
}

impl Tickets {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        // Nothing is left half done by who panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held, unless it has expired.
    fn valid(&self) -> Option<std::sync::MutexGuard<'_, Held>> {
        let held = self.held();
        (held.until? > UnixTime::now()).then_some(held)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.held().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.held().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.held().tls12 = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.valid()?.tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.held().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let tickets = &mut self.held().tls13;
        if tickets.len() == MAX_TICKETS {
            tickets.pop_front();
        }
        tickets.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.valid()?.tls13.pop_back()
    }
}

impl ClientSessionStore for Resuming {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    // Sessions of TLS 1.2 are not what it is chosen for.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(name)
    }
}

/// When the first of these certificates expires; none where that cannot be told.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let times = chain.iter().map(|certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        u64::try_from(certificate.validity().not_after.timestamp()).ok()
    });
    let first = times.min_by_key(|time| time.unwrap_or(0))??;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(first)))
}

/// Whether the certificates of a resumed session are still in their time.
pub(super) fn is_in_time(chain: &[CertificateDer<'_>]) -> bool {
    chain.is_empty() || expiry(chain).is_some_and(|until| until > UnixTime::now())
}
