//! Which proxy this process is: by flag, by hand, or by Nomad's environment, and by one of them
//! alone.

use crate::args::{ManualArgs, WhichArgs};
use crate::config::{AdminBind, ProxyRef};
use crate::report::{KnownId, Sourced};

use super::draft::Draft;
use super::{manual, nomad};

/// Finds the one way that is used, or says what is missing or contradictory.
pub(super) fn proxy(
    which: WhichArgs,
    by_hand: ManualArgs,
    admin: Option<AdminBind>,
    draft: &mut Draft<'_>,
) -> Option<ProxyRef> {
    let hand_flags = manual::flags(&by_hand);
    let mut ways = Vec::new();
    ways.extend(which.proxy_id.is_some().then(|| "--proxy-id".to_owned()));
    ways.extend(which.sidecar_for.is_some().then(|| "--sidecar-for".to_owned()));
    if !hand_flags.is_empty() {
        ways.push(hand_flags.join(", "));
    }
    if ways.len() > 1 {
        draft.conflict(
            format!("{} each say which proxy this is", ways.join(" and ")),
            "give one of --proxy-id, --sidecar-for, or --service with its companions".into(),
        );
        return None;
    }
    if let (Some(way), Some(task)) = (ways.first(), draft.peek(nomad::TASK_NAME)) {
        draft.note(format!(
            "{way} says which proxy this is; {}={task} does not count",
            nomad::TASK_NAME
        ));
    }
    if let Some(id) = draft.flag("--proxy-id", which.proxy_id) {
        draft.report.proxy_id = Some(KnownId {
            id: Sourced::new(Some(id.value.clone()), id.from),
            resolved: true,
            candidate: None,
        });
        return Some(ProxyRef::ProxyId(id.value));
    }
    if let Some(id) = draft.flag("--sidecar-for", which.sidecar_for) {
        let likely = format!("{}-sidecar-proxy", id.value);
        draft.report.put("sidecar_for", id.value.clone(), &id.from);
        draft.report.proxy_id = Some(KnownId {
            id: Sourced::new(None, "the service's one sidecar, found at the agent"),
            resolved: false,
            candidate: Some(Sourced::new(likely, "Consul's custom for --sidecar-for")),
        });
        return Some(ProxyRef::SidecarFor(id.value));
    }
    if !hand_flags.is_empty() {
        return manual::proxy(by_hand, admin, draft).map(ProxyRef::Manual);
    }
    if ways.is_empty() {
        return nomad::proxy(draft);
    }
    None
}
