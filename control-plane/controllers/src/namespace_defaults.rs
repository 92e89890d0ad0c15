//! What every namespace has from its beginning: a default service account, and the certificates by which pods verify
//! the API server. Both come back when they are deleted or spoiled.

use std::sync::Arc;

use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use crate::context::Context;
use crate::error::{Doing, Result, code, namespace_terminating};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
/// Part of the API: clients see it, and the recorded answers contain it.
const DESCRIBED: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions \
of Kubernetes clusters.";

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, root_ca: watch::Receiver<String>) {
    let queue = Arc::new(Queue::<Arc<str>>::default());
    context.namespaces.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(namespace) = change.new {
                queue.add(Key::of(&namespace.metadata).name);
            }
        }
    }));
    context.service_accounts.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let (None, Some(old)) = (change.new, change.old) {
                queue.add(Key::of(&old.metadata).namespace);
            }
        }
    }));
    context.root_cas.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(map) = change.last() {
                queue.add(Key::of(&map.metadata).namespace);
            }
        }
    }));
    let stop = context.stop.clone();
    let republish = republish(context.clone(), queue.clone(), root_ca.clone());
    let reconciling = runner::run("namespace-defaults", queue, 8, stop, move |namespace| {
        let (context, root_ca) = (context.clone(), root_ca.borrow().clone());
        async move { reconcile(&context, &root_ca, &namespace).await }
    });
    tokio::join!(reconciling, republish);
}

/// Has every namespace looked at when the authorities change.
async fn republish(
    context: Arc<Context>,
    queue: Arc<Queue<Arc<str>>>,
    mut root_ca: watch::Receiver<String>,
) {
    let stop = context.stop.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = root_ca.changed() => if changed.is_err() {
                // They will not change any more.
                return;
            }
        }
        for namespace in context.namespaces.list() {
            queue.add(Key::of(&namespace.metadata).name);
        }
    }
}

fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

async fn reconcile(context: &Context, root_ca: &str, namespace: &str) -> Result<Next> {
    let known = context.namespaces.get(&Key::new("", namespace));
    if !known.is_some_and(|namespace| is_active(&namespace)) {
        return Ok(Next::Changed);
    }
    if context
        .service_accounts
        .get(&Key::new(namespace, ACCOUNT))
        .is_none()
    {
        let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
        let account = ServiceAccount {
            metadata: meta(namespace, ACCOUNT),
            ..ServiceAccount::default()
        };
        let created = api.create(&PostParams::default(), &account).await;
        if let Some(account) = accepted(created, namespace, ACCOUNT)? {
            context.service_accounts.observe(account);
        }
    }
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let written = match context.root_cas.get(&Key::new(namespace, ROOT_CA)) {
        None => {
            let map = published(None, root_ca, namespace);
            api.create(&PostParams::default(), &map).await
        }
        Some(known) => {
            let map = published(Some(&known), root_ca, namespace);
            if map == *known {
                return Ok(Next::Changed);
            }
            api.replace(ROOT_CA, &PostParams::default(), &map).await
        }
    };
    if let Some(map) = accepted(written, namespace, ROOT_CA)? {
        context.root_cas.observe(map);
    }
    Ok(Next::Changed)
}

/// The answer; none when the object is there already, or the namespace on its way out.
fn accepted<K>(answer: kube::Result<K>, namespace: &str, name: &str) -> Result<Option<K>> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if namespace_terminating(&error) || code(&error) == Some(404) => Ok(None),
        Err(error) if matches!(&error, kube::Error::Api(status) if status.reason == "AlreadyExists") => {
            Ok(None)
        }
        Err(error) => Err(error).doing("publishing", &Key::new(namespace, name)),
    }
}

/// The config map as it should be, from what it is.
fn published(known: Option<&ConfigMap>, root_ca: &str, namespace: &str) -> ConfigMap {
    let mut map = known.cloned().unwrap_or_else(|| ConfigMap {
        metadata: meta(namespace, ROOT_CA),
        ..ConfigMap::default()
    });
    map.data = Some([(FILE.to_owned(), root_ca.to_owned())].into());
    let annotations = map.metadata.annotations.get_or_insert_default();
    annotations.insert(DESCRIPTION.to_owned(), DESCRIBED.to_owned());
    map
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoiled_map_is_mended_and_a_good_one_left_alone() {
        let good = published(None, "PEM", "ns");
        assert_eq!(published(Some(&good), "PEM", "ns"), good);
        let mut spoiled = good.clone();
        spoiled.data = Some([("ca.crt".to_owned(), "spoiled".to_owned())].into());
        spoiled.metadata.annotations = None;
        assert_eq!(published(Some(&spoiled), "PEM", "ns"), good);
    }
}
