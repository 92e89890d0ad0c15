//! Lists as the API server has them now, for what caches cannot say: they may be behind.

use kube::api::{ListParams, ObjectList};

/// Objects are asked for in parts of so many.
const PAGE: u32 = 500;

/// Asks for a list part by part, all of one revision, and hands on each.
pub(crate) async fn each_page<T: Clone, F: Future<Output = kube::Result<ObjectList<T>>>>(
    list: impl Fn(ListParams) -> F,
    mut each: impl FnMut(Vec<T>),
) -> kube::Result<()> {
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = list(parameters.clone()).await?;
        each(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}
