//! A workflow that is about to be started: its jobs and stages by name, what waits for what, and the rules for them.

use std::collections::HashMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::model::draw::{Graph, Line, Spot};
use crate::model::need::{Condition, OnFailure};
use crate::model::new_job::NewJob;
use crate::model::rules::check_name;

/// Jobs that belong together and wait for each other.
///
/// A *job* bears a name of its own. A *stage* is any number of jobs under one name: those that follow it wait for all of
/// them, at the cost of one. What follows is said by [`after`](NewWorkflow::after) of the job or stage that was named last;
/// names may be used before they are given. Nothing runs before all of it is written.
///
/// ```
/// use jobmill::{NewJob, NewWorkflow, OnFailure};
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
///
/// let parts = (0..1000).map(|part| NewJob::json("part", &part));
/// let import = NewWorkflow::new("import")
///     .job("fetch", NewJob::json("fetch", &"https://example.org"))
///     .jobs("parts", parts)
///     .after("fetch")
///     .job("sum", NewJob::json("sum", &()))
///     .after_with("parts", OnFailure::Continue)
///     .on_failure(NewJob::json("alarm", &"the import failed"));
/// println!("{}", import.to_mermaid());
/// let id = client.start_workflow(import)?;
///
/// let workflow = client.workflow(id)?;
/// assert_eq!((workflow.jobs.pending, workflow.jobs.created), (1, 1001));
/// assert_eq!(workflow.stage("parts").map(|parts| parts.jobs.total()), Some(1000));
/// # Ok(())
/// # }
/// ```
#[must_use = "a new workflow does nothing until it is started"]
pub struct NewWorkflow<'j> {
    pub(crate) name: String,
    pub(crate) user: Option<String>,
    pub(crate) nodes: Vec<NewNode<'j>>,
    /// What follows its end, with the condition.
    pub(crate) callbacks: Vec<(Condition, NewJob)>,
    /// A callback was set last, and not a name.
    at_callback: bool,
    /// A relation was said where no name waits: before the first, or of a callback.
    misplaced: bool,
}

/// One name in a workflow.
pub(crate) struct NewNode<'j> {
    pub(crate) name: String,
    pub(crate) work: Work<'j>,
    needs: Vec<(String, OnFailure)>,
}

/// What stands under a name.
pub(crate) enum Work<'j> {
    Job(Box<NewJob>),
    Stage(Box<dyn Iterator<Item = NewJob> + 'j>),
}

/// What is known of a name before its jobs are written.
#[derive(Clone, Debug)]
pub(crate) struct PlannedNode {
    pub(crate) name: String,
    pub(crate) is_stage: bool,
    /// Which nodes it needs, by their places.
    pub(crate) needs: Vec<(usize, OnFailure)>,
    /// Its payload is the result of the one that it needs.
    pub(crate) is_fed: bool,
}

/// What is known of a workflow before its jobs are written.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) user: Option<String>,
    pub(crate) nodes: Vec<PlannedNode>,
    pub(crate) callbacks: Vec<Condition>,
}

/// The name that a callback bears in its workflow.
pub(crate) const fn callback_name(condition: Condition) -> &'static str {
    match condition {
        Condition::SuccessOrCancel | Condition::SuccessOrFail => "on_success",
        Condition::Failure => "on_failure",
        Condition::End => "on_end",
    }
}

impl<'j> NewWorkflow<'j> {
    /// How many names a workflow may have. A stage is one, whatever it holds.
    pub const MAX_NODES: usize = 10_000;
    /// How many others a job or a stage may wait for.
    pub const MAX_NEEDS: usize = 1000;
    /// How many relations a workflow may have.
    pub const MAX_RELATIONS: usize = 20_000;

    /// A workflow without jobs yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            user: None,
            nodes: Vec::new(),
            callbacks: Vec::new(),
            at_callback: false,
            misplaced: false,
        }
    }

    /// Jobs one after the other, each cancelled if the one before it does not end well.
    ///
    /// ```
    /// use jobmill::{NewJob, NewWorkflow};
    /// let chain = NewWorkflow::chain(
    ///     "invoice",
    ///     [("write", NewJob::json("write", &7)), ("send", NewJob::json("send", &7))],
    /// );
    /// assert!(chain.to_dot().contains("write"));
    /// ```
    pub fn chain<S: Into<String>, J: Into<NewJob>>(
        name: impl Into<String>,
        jobs: impl IntoIterator<Item = (S, J)>,
    ) -> Self {
        let mut chain = Self::new(name);
        for (name, job) in jobs {
            let before = chain.nodes.last().map(|node| node.name.clone());
            chain = chain.job(name, job);
            if let Some(before) = before {
                chain = chain.after(before);
            }
        }
        chain
    }

    /// Adds a job.
    pub fn job(self, name: impl Into<String>, job: impl Into<NewJob>) -> Self {
        self.name_node(name.into(), Work::Job(Box::new(job.into())))
    }

    /// Adds a stage: jobs that are counted together. They are taken from the iterator when the workflow is started, a slice
    /// at a time. There may be none: handlers can [add](crate::Context::enqueue_in_stage) some while the stage is open, as
    /// it is if it follows their own job. A stage without jobs that follows nothing ends at once.
    pub fn jobs<J: Into<NewJob> + 'j>(
        self,
        name: impl Into<String>,
        jobs: impl IntoIterator<Item = J, IntoIter: 'j>,
    ) -> Self {
        self.name_node(name.into(), Work::Stage(Box::new(jobs.into_iter().map(Into::into))))
    }

    fn name_node(mut self, name: String, work: Work<'j>) -> Self {
        self.nodes.push(NewNode { name, work, needs: Vec::new() });
        self.at_callback = false;
        self
    }

    /// Has the job or stage that was named last wait for another, and be cancelled if that does not end well.
    pub fn after(self, name: impl Into<String>) -> Self {
        self.after_with(name, OnFailure::Cancel)
    }

    /// Has the job or stage that was named last wait for another, and says what becomes of it if that does not end well.
    pub fn after_with(mut self, name: impl Into<String>, on_failure: OnFailure) -> Self {
        match self.nodes.last_mut().filter(|_| !self.at_callback) {
            Some(node) => node.needs.push((name.into(), on_failure)),
            None => self.misplaced = true,
        }
        self
    }

    /// Sets the user whose workflow it is. Its jobs are that user's. Defaults to the one to whom the client is bound.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets a job that runs when the workflow has ended and has completed. It is cancelled otherwise.
    ///
    /// Callbacks are jobs like others, and have nothing from those of the workflow but its user: one runs on the queue, with
    /// the priority and after the delay that its own [`NewJob`] says, by default on the queue `default` with the default
    /// priority and at once. Where many jobs wait, give it a queue of its own or a higher priority.
    pub fn on_success(self, job: impl Into<NewJob>) -> Self {
        self.call_back(Condition::SuccessOrCancel, job.into())
    }

    /// Sets a job that runs when the workflow has ended otherwise: it failed or was cancelled. It is cancelled if not. Its
    /// queue and priority are [its own](NewWorkflow::on_success).
    pub fn on_failure(self, job: impl Into<NewJob>) -> Self {
        self.call_back(Condition::Failure, job.into())
    }

    /// Sets a job that runs when the workflow has ended, however. Its queue and priority are
    /// [its own](NewWorkflow::on_success).
    pub fn on_end(self, job: impl Into<NewJob>) -> Self {
        self.call_back(Condition::End, job.into())
    }

    fn call_back(mut self, condition: Condition, job: NewJob) -> Self {
        self.callbacks.push((condition, job));
        self.at_callback = true;
        self
    }

    /// Checks all that can be checked before the jobs of its stages are known.
    pub(crate) fn plan(&self) -> Result<Plan> {
        check_name("workflow", &self.name)?;
        if let Some(user) = &self.user {
            check_name("user", user)?;
        }
        if self.misplaced {
            return Err(Error::invalid(
                "after",
                "must follow the job or stage that waits, and a callback waits for the whole",
            ));
        }
        if self.nodes.is_empty() {
            return Err(Error::invalid("workflow", "must have at least one job or stage"));
        }
        if self.nodes.len() > Self::MAX_NODES {
            return Err(Error::invalid("workflow", format_args!("must have no more than {} names", Self::MAX_NODES)));
        }
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (place, node) in self.nodes.iter().enumerate() {
            check_name("name", &node.name)?;
            if ["on_success", "on_failure", "on_end"].contains(&&*node.name) {
                return Err(Error::invalid("name", format_args!("must not be {}, which names a callback", node.name)));
            }
            if places.insert(&node.name, place).is_some() {
                return Err(Error::invalid("name", format_args!("{:?} must be given once", node.name)));
            }
        }
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut relations = 0;
        for node in &self.nodes {
            let mut needs: Vec<(usize, OnFailure)> = Vec::with_capacity(node.needs.len());
            for (name, on_failure) in &node.needs {
                let Some(place) = places.get(&**name) else {
                    let rule = format!("{:?} waits for {name:?}, and nothing of the workflow has that name", node.name);
                    return Err(Error::invalid("after", rule));
                };
                if needs.iter().any(|(known, _)| known == place) {
                    return Err(Error::invalid("after", format!("{:?} waits for {name:?} twice", node.name)));
                }
                needs.push((*place, *on_failure));
            }
            relations += needs.len();
            if needs.len() > Self::MAX_NEEDS {
                let rule =
                    format!("{:?} must wait for no more than {}: a stage counts as one", node.name, Self::MAX_NEEDS);
                return Err(Error::invalid("after", rule));
            }
            let (is_stage, is_fed) = match &node.work {
                Work::Job(job) => (false, job.from_previous),
                Work::Stage(_) => (true, false),
            };
            if is_fed && !matches!(&*needs, [(need, _)] if matches!(self.nodes[*need].work, Work::Job(_))) {
                let rule =
                    format!("{:?} must wait for one job, whose result it takes, and for nothing else", node.name);
                return Err(Error::invalid("from_previous", rule));
            }
            nodes.push(PlannedNode { name: node.name.clone(), is_stage, needs, is_fed });
        }
        if relations > Self::MAX_RELATIONS {
            let rule = format!("must be no more than {} relations: a stage counts as one", Self::MAX_RELATIONS);
            return Err(Error::invalid("after", rule));
        }
        if let Some(circle) = circle(&nodes) {
            let names: Vec<&str> = circle.iter().map(|place| &*nodes[*place].name).collect();
            return Err(Error::invalid("after", format_args!("goes in a circle: {}", names.join(" after "))));
        }
        let mut callbacks = Vec::new();
        for (condition, job) in &self.callbacks {
            let name = callback_name(*condition);
            if callbacks.contains(condition) {
                return Err(Error::invalid(name, "must be given once"));
            }
            if job.from_previous {
                return Err(Error::invalid(name, "cannot take the result of a workflow, which has none"));
            }
            callbacks.push(*condition);
        }
        Ok(Plan { name: self.name.clone(), user: self.user.clone(), nodes, callbacks })
    }

    /// A drawing of it in Mermaid's language.
    pub fn to_mermaid(&self) -> String {
        self.graph().to_mermaid()
    }

    /// A drawing of it in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        self.graph().to_dot()
    }

    fn graph(&self) -> Graph {
        let places: HashMap<&str, usize> =
            self.nodes.iter().enumerate().map(|(place, node)| (&*node.name, place)).collect();
        let mut graph = Graph { name: self.name.clone(), ..Graph::default() };
        for (place, node) in self.nodes.iter().enumerate() {
            let is_stage = matches!(node.work, Work::Stage(_));
            graph.spots.push(Spot { label: node.name.clone(), status: None, is_stage, is_callback: false });
            for (name, on_failure) in &node.needs {
                if let Some(from) = places.get(&**name) {
                    graph.lines.push(Line { from: *from, to: place, on_failure: *on_failure });
                }
            }
        }
        for (condition, _) in &self.callbacks {
            let label = callback_name(*condition).to_owned();
            graph.spots.push(Spot { label, status: None, is_stage: false, is_callback: true });
        }
        graph
    }
}

impl fmt::Debug for NewWorkflow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<&str> = self.nodes.iter().map(|node| &*node.name).collect();
        f.debug_struct("NewWorkflow").field("name", &self.name).field("nodes", &nodes).finish_non_exhaustive()
    }
}

/// A way from a node along its needs back to itself, if there is one.
fn circle(nodes: &[PlannedNode]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Never,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::Never; nodes.len()];
    for start in 0..nodes.len() {
        if seen[start] != Seen::Never {
            continue;
        }
        // A way may be as long as the workflow, too long for a call of a function at each step.
        let mut way = vec![(start, 0)];
        seen[start] = Seen::OnTheWay;
        while let Some((here, next)) = way.last_mut() {
            let Some((need, _)) = nodes[*here].needs.get(*next) else {
                seen[*here] = Seen::Done;
                way.pop();
                continue;
            };
            *next += 1;
            match seen[*need] {
                Seen::Never => {
                    seen[*need] = Seen::OnTheWay;
                    way.push((*need, 0));
                }
                Seen::OnTheWay => {
                    let from = way.iter().position(|(place, _)| place == need).unwrap_or(0);
                    let mut circle: Vec<usize> = way[from..].iter().map(|(place, _)| *place).collect();
                    circle.push(*need);
                    return Some(circle);
                }
                Seen::Done => {}
            }
        }
    }
    None
}
