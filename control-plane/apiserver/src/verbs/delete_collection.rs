//! DELETE of a collection: every object that the selectors match, each as if deleted by itself.

use gantry_api::status::StatusError;

use super::delete::{Options, delete_one};
use super::list::{ListOptions, page, snapshot};
use super::scan::Walk;
use crate::context::Context;
use crate::encoder::{check_object_policy, not_a_single_object};
use crate::media::{Form, Media};
use crate::request::ResourcePath;
use crate::response::Answer;

pub(crate) async fn delete_collection(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    // Namespaces are too much to lose in one request.
    if info.kind == "Namespace" || (info.namespaced && context.namespace().is_none()) {
        return Err(StatusError::method_not_allowed());
    }
    let media = Media::of_list(context.headers)?.prettier(context.headers, context.query);
    let is_single = |shape: crate::media::Shape| shape.form == Form::Metadata;
    if media.shape.is_some_and(is_single) {
        return Err(not_a_single_object(context));
    }
    let which = ListOptions::read(context)?;
    let options = Options::read(context)?;
    let answer = delete_selected(context, media, which, &options).await;
    Ok(Answer::of(answer).with_warnings(options.warnings(info)))
}

async fn delete_selected(
    context: &Context<'_>,
    media: Media,
    which: ListOptions,
    options: &Options,
) -> Result<Answer, StatusError> {
    check_object_policy(context, media)?;
    let snapshot = snapshot(context, &which)?;
    let mut walk = Walk::new(
        &snapshot,
        context.namespace(),
        &which.selection,
        which.cursor(),
    );
    // As many as one page has, where its length is given.
    let mut left = if which.limit == 0 {
        usize::MAX
    } else {
        which.limit
    };
    let mut more = true;
    while more {
        let mut matching = Vec::new();
        more = walk.step(|namespace, name| matching.push((namespace.clone(), name.clone())));
        matching.truncate(left);
        left -= matching.len();
        more &= left > 0;
        for (namespace, name) in matching {
            let path = ResourcePath {
                name: Some(name.to_string()),
                namespace: Some(namespace.to_string()).filter(|namespace| !namespace.is_empty()),
                ..context.path.clone()
            };
            let one = Context {
                path: &path,
                body: context.body.clone(),
                budget: None,
                ..*context
            };
            match delete_one(&one, options).await {
                Ok(_) => {}
                // Somebody else deleted it meanwhile.
                Err(error) if error.code() == 404 => {}
                Err(error) => return Err(error),
            }
            // A dry run waits for nobody, and an object may be large.
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
    }
    // As they were, like a list of them: none is held in memory for it.
    page(context, media, snapshot, which).await
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use http::Method;
    use serde_json::{Value, json};

    use crate::ApiServer;
    use crate::testing::{self, server};

    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    const OBJECTS: usize = 20;

    async fn send(server: &ApiServer, method: Method, uri: &str, body: Value) -> Value {
        let (status, answer) = testing::send(server, method, uri, body).await;
        assert!((200..300).contains(&status), "{answer}");
        answer
    }

    fn names(list: &Value) -> Vec<&str> {
        let items = list["items"].as_array().expect("a list").iter();
        let names = items.filter_map(|item| item["metadata"]["name"].as_str());
        names.filter(|name| name.starts_with("m-")).collect()
    }

    #[tokio::test]
    async fn a_dry_run_gives_way_and_says_what_would_go() {
        let server = server().await;
        for at in 0..OBJECTS {
            let name = format!("m-{at:02}");
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": "b"}},
                "data": {"text": "x".repeat(40_000)}
            });
            send(&server, Method::POST, MAPS, map).await;
        }
        let uri = format!("{MAPS}?labelSelector=a%3Db&dryRun=All");
        let mut answer = pin!(send(&server, Method::DELETE, &uri, Value::Null));
        let mut gave_way = 0;
        let answer = poll_fn(|cx| {
            let polled = answer.as_mut().poll(cx);
            gave_way += usize::from(polled.is_pending());
            polled
        })
        .await;
        assert!(gave_way >= OBJECTS, "{gave_way} times");
        assert_eq!(answer["kind"], "ConfigMapList");
        assert_eq!(names(&answer).len(), OBJECTS);
        let left = send(&server, Method::GET, MAPS, Value::Null).await;
        assert_eq!(names(&left).len(), OBJECTS, "nothing went");

        let uri = format!("{MAPS}?fieldSelector=metadata.name%3Dm-00");
        let answer = send(&server, Method::DELETE, &uri, Value::Null).await;
        assert_eq!(names(&answer), ["m-00"]);
        let uri = format!("{MAPS}?labelSelector=a%3Db&limit=2");
        let page = send(&server, Method::GET, &uri, Value::Null).await;
        assert_eq!(names(&page), ["m-01", "m-02"]);
        let token = page["metadata"]["continue"].as_str().expect("more follow");
        let uri = format!("{MAPS}?labelSelector=a%3Db&limit=17&continue={token}");
        let rest = send(&server, Method::GET, &uri, Value::Null).await;
        assert_eq!(names(&rest).len(), 17);
        assert_eq!(rest["metadata"]["continue"], Value::Null, "that was all");

        let uri = format!("{MAPS}?labelSelector=a%3Db&limit=3");
        let answer = send(&server, Method::DELETE, &uri, Value::Null).await;
        assert_eq!(names(&answer), ["m-01", "m-02", "m-03"]);
        assert!(answer["metadata"]["continue"].is_string(), "more are left");
        let left = send(&server, Method::GET, MAPS, Value::Null).await;
        assert_eq!(names(&left).len(), OBJECTS - 4);
    }

    /// What a list says of itself: how many it has, whether more follow, and how many.
    fn page(list: &Value) -> (usize, Option<&str>, Option<i64>) {
        let metadata = &list["metadata"];
        let token = metadata["continue"].as_str();
        (
            names(list).len(),
            token,
            metadata["remainingItemCount"].as_i64(),
        )
    }

    #[tokio::test]
    async fn pages_say_what_is_behind_them() {
        let server = server().await;
        for at in 0..7 {
            let label = if at % 2 == 0 { "even" } else { "odd" };
            let map = json!({"metadata": {"name": format!("m-{at:02}"), "labels": {"par": label}}});
            send(&server, Method::POST, MAPS, map).await;
        }
        let get = async |query: String| {
            send(
                &server,
                Method::GET,
                &format!("{MAPS}?{query}"),
                Value::Null,
            )
            .await
        };
        let all = names(&get(String::new()).await).len();
        assert_eq!(all, 7);
        let first = get("limit=3".to_owned()).await;
        let (_, token, left) = page(&first);
        let (token, left) = (token.expect("more"), left.expect("counted"));
        let second = get(format!("limit=2&continue={token}")).await;
        assert_eq!(page(&second).2, Some(left - 2), "counted once");
        // What is behind a page need not be selected.
        let odd = get("labelSelector=par%3Dodd&limit=3".to_owned()).await;
        let (count, token, left) = page(&odd);
        assert_eq!((count, left), (3, None));
        let token = token.expect("something follows");
        let rest = get(format!("labelSelector=par%3Dodd&limit=3&continue={token}")).await;
        assert_eq!(page(&rest), (0, None, None));
        let even = get("labelSelector=par%3Deven&limit=4".to_owned()).await;
        assert_eq!(page(&even), (4, None, None));
        let one = get("fieldSelector=metadata.name%3Dm-01&limit=1".to_owned()).await;
        assert_eq!(page(&one), (1, None, None));
        // Who is content with any revision gets all; who names one gets that one.
        let any = get("limit=3&resourceVersion=0".to_owned()).await;
        assert_eq!(page(&any), (7, None, None));
        let version = first["metadata"]["resourceVersion"].as_str();
        let version = version.expect("a revision");
        let last = format!("{MAPS}/m-06");
        send(&server, Method::DELETE, &last, Value::Null).await;
        let then = get(format!("limit=20&resourceVersion={version}")).await;
        assert_eq!(page(&then), (7, None, None));
        assert_eq!(then["metadata"]["resourceVersion"], version);
    }

    #[tokio::test]
    async fn the_pods_of_jobs_stay_where_nothing_is_said_of_them() {
        const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

        let server = server().await;
        for name in ["m-a", "m-b", "m-c"] {
            let pod =
                json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
            let job = json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
                "spec": {"template": {"spec": pod}}
            });
            send(&server, Method::POST, JOBS, job).await;
        }
        let uri = format!("{JOBS}/m-a");
        let marked = send(&server, Method::DELETE, &uri, Value::Null).await;
        assert_eq!(marked["metadata"]["finalizers"], json!(["orphan"]));
        let uri = format!("{JOBS}/m-b?propagationPolicy=Background");
        let gone = send(&server, Method::DELETE, &uri, Value::Null).await;
        assert_eq!(gone["status"], "Success");
        send(&server, Method::DELETE, JOBS, Value::Null).await;
        let left = send(&server, Method::GET, JOBS, Value::Null).await;
        assert_eq!(names(&left), ["m-a", "m-c"], "they wait for their pods");
        let finalizers = left.pointer("/items/1/metadata/finalizers");
        assert_eq!(finalizers, Some(&json!(["orphan"])));
    }
}
