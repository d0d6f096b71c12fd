//! What providers make, list by tags and delete: machines and volumes. What both promise is checked once, here.

pub(crate) mod fault;
pub(crate) mod lists;
pub(crate) mod repeat;

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use infranetes_sdk::{CallContext, ErrorKind, Result};

use crate::check::{Limits, Outcome, Stop, context, ensure, eventually, ok, require};
use crate::run::{Label, Run};
use fault::{Fault, FaultInjector, FaultyCall};

/// A kind of thing that a provider makes.
pub(crate) trait Stock: Sized + Send + Sync + 'static {
    /// The trait that it is made through.
    type Provider: ?Sized + Send + Sync;
    /// What the suite was told about it.
    type Subject: Send + Sync;
    /// What its checks need besides.
    type Beside: Default + Send + Sync;
    /// What is asked for.
    type Request: Clone + Send + Sync;
    /// What is made.
    type Item: Clone + Debug + Send + Sync;

    /// One of them: "machine".
    const WORD: &'static str;
    /// The method that ends one: "destroy".
    const DELETE: &'static str;
    /// What a provider asks of its cloud: to make one, for one, for all, to end one.
    const CALLS: [FaultyCall; 4];

    fn limits(subject: &Self::Subject) -> &Limits;
    fn id(item: &Self::Item) -> &str;
    fn tags(request: &mut Self::Request) -> &mut HashMap<String, String>;

    /// A wish that the provider can fulfil.
    fn request(
        stage: &Stage<Self>,
        label: Label,
    ) -> impl Future<Output = Outcome<Self::Request>> + Send;

    fn create(
        provider: &Self::Provider,
        context: CallContext,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Item>> + Send;

    fn get(
        provider: &Self::Provider,
        context: CallContext,
        id: String,
    ) -> impl Future<Output = Result<Self::Item>> + Send;

    /// A page, and the token of the next one.
    fn page(
        provider: &Self::Provider,
        context: CallContext,
        wanted: Page,
    ) -> impl Future<Output = Result<(Vec<Self::Item>, String)>> + Send;

    fn delete(
        provider: &Self::Provider,
        context: CallContext,
        id: String,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Waits until a new one can be used, or ended.
    fn settled(
        stage: &Stage<Self>,
        item: Self::Item,
    ) -> impl Future<Output = Outcome<Self::Item>> + Send;

    /// Waits until nothing of this run costs anything.
    fn swept(stage: &Stage<Self>) -> impl Future<Output = Outcome> + Send;
}

/// Which page is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub(crate) tags: HashMap<String, String>,
    pub(crate) token: String,
    pub(crate) size: u32,
}

/// What the checks of one suite share.
pub(crate) struct Stage<K: Stock> {
    pub(crate) provider: Arc<K::Provider>,
    pub(crate) subject: K::Subject,
    pub(crate) beside: K::Beside,
    /// Makes the cloud fail, where that can be done.
    pub(crate) faults: Option<Arc<dyn FaultInjector>>,
    run: Run,
    /// The one that the checks of one life share, and what it was made from.
    main: Mutex<Option<(K::Request, K::Item)>>,
    /// The ids of all that was ever made.
    made: Mutex<Vec<String>>,
}

impl<K: Stock> Stage<K> {
    pub(crate) fn new(provider: Arc<K::Provider>, subject: K::Subject) -> Self {
        Self {
            provider,
            subject,
            beside: K::Beside::default(),
            faults: None,
            run: Run::new(),
            main: Mutex::default(),
            made: Mutex::default(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        K::limits(&self.subject)
    }

    pub(crate) fn ctx(&self) -> CallContext {
        context(self.limits())
    }

    /// The tags that all carry that this run makes.
    pub(crate) fn run_tags(&self) -> HashMap<String, String> {
        self.run.tags()
    }

    /// A new wish, with a token, a name and a tag of its own.
    pub(crate) async fn request(&self) -> Outcome<K::Request> {
        K::request(self, self.run.label()).await
    }

    /// Asks for `request`; what is made is removed at the end.
    pub(crate) async fn try_create(&self, request: &K::Request) -> Result<K::Item> {
        let made = K::create(&self.provider, self.ctx(), request.clone()).await;
        if let Ok(item) = &made {
            self.remember(K::id(item));
        }
        made
    }

    /// One for `request`, to be removed at the end.
    pub(crate) async fn create(&self, request: &K::Request) -> Outcome<K::Item> {
        let item = ok("create", self.try_create(request).await)?;
        ensure(!K::id(&item).is_empty(), || {
            format!("create answered a {} without an id", K::WORD)
        })?;
        Ok(item)
    }

    /// One for `request` that can be used.
    pub(crate) async fn make(&self, request: &K::Request) -> Outcome<K::Item> {
        K::settled(self, self.create(request).await?).await
    }

    pub(crate) async fn try_get(&self, id: &str) -> Result<K::Item> {
        K::get(&self.provider, self.ctx(), id.to_owned()).await
    }

    pub(crate) async fn get(&self, id: &str) -> Outcome<K::Item> {
        ok("get", self.try_get(id).await)
    }

    pub(crate) async fn delete(&self, id: &str) -> Outcome {
        ok(K::DELETE, K::delete(&self.provider, self.ctx(), id.to_owned()).await)
    }

    /// Deletes one, and waits until nothing shows it.
    pub(crate) async fn end(&self, request: &K::Request, item: &K::Item) -> Outcome {
        self.delete(K::id(item)).await?;
        self.wait_until_gone(K::id(item)).await?;
        self.wait_for_count(request, 0..=0).await.map(drop)
    }

    pub(crate) fn remember(&self, id: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    pub(crate) fn made(&self) -> Vec<String> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_main(&self, request: K::Request, item: K::Item) {
        *self.main.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, item));
    }

    /// The one of the checks of one life.
    pub(crate) fn main(&self) -> Outcome<(K::Request, K::Item)> {
        let main = self.main.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing = || format!("there is no {}, because create failed", K::WORD);
        main.ok_or_else(|| Stop::Skipped(missing()))
    }

    /// All that carry `tags`, from all pages.
    pub(crate) async fn list(
        &self,
        tags: &HashMap<String, String>,
        size: u32,
    ) -> Outcome<Vec<K::Item>> {
        let mut items = Vec::new();
        let mut token = String::new();
        for _ in 0..PAGES_MAX {
            let wanted = Page { tags: tags.clone(), token, size };
            let (page, next) = ok("list", K::page(&self.provider, self.ctx(), wanted).await)?;
            let length = page.len();
            ensure(size == 0 || length <= size as usize, || {
                format!("a page of {size} has {length} entries")
            })?;
            items.extend(page);
            token = next;
            if token.is_empty() {
                return Ok(items);
            }
        }
        Err(Stop::Broken(format!("list has more than {PAGES_MAX} pages")))
    }

    /// Waits until so many with all the tags of `request` are listed.
    pub(crate) async fn wait_for_count(
        &self,
        request: &K::Request,
        counts: RangeInclusive<usize>,
    ) -> Outcome<Vec<K::Item>> {
        self.wait_for_tagged(K::tags(&mut request.clone()), counts).await
    }

    /// Waits until so many with `tags` are listed.
    pub(crate) async fn wait_for_tagged(
        &self,
        tags: &HashMap<String, String>,
        counts: RangeInclusive<usize>,
    ) -> Outcome<Vec<K::Item>> {
        let what = format!("{counts:?} {}s in the list", K::WORD);
        eventually(&what, self.limits().settle, || async {
            match self.list(tags, 0).await {
                Ok(items) if counts.contains(&items.len()) => Ok(items),
                Ok(items) => Err(format!("there are {}", items.len())),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }

    /// Waits until nothing shows a deleted one.
    pub(crate) async fn wait_until_gone(&self, id: &str) -> Outcome {
        eventually("gone", self.limits().settle, || async {
            match self.try_get(id).await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                other => return Err(format!("get answers {other:?}")),
            }
            match self.list(&self.run_tags(), 0).await {
                Ok(items) if items.iter().all(|item| K::id(item) != id) => Ok(()),
                Ok(_) => Err("list still shows it".into()),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }

    /// Whether the next such call goes wrong.
    pub(crate) fn inject(&self, call: FaultyCall, fault: Fault) -> bool {
        self.faults.as_ref().is_some_and(|faults| faults.inject(call, fault))
    }

    pub(crate) fn inject_or_skip(&self, call: FaultyCall, fault: Fault) -> Outcome {
        let injected = self.inject(call, fault);
        require(injected, &format!("the injector cannot make {call:?} go wrong as {fault:?}"))
    }
}

/// A list that never ends is broken.
const PAGES_MAX: usize = 1000;
