//! Whatever is done to workflows, in whatever order: each comes to its end, and what follows a job has ended as that asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jobmill::testing::{Fault, Harness};
use jobmill::{
    Client, Context, Durability, ErrorKind, Failure, FailureReason, JobId, Limit, LimitUse, NewJob, NewWorkflow,
    OnFailure, Payload, Query, Retention, Status, Workflow, WorkflowId, WorkflowNode,
};
use serde::{Deserialize, Serialize};

use crate::support::{Dice, query, secs, sound};

/// What may be done besides the common.
#[derive(Clone, Copy, Default)]
struct Rules {
    /// Single jobs are cancelled, sent again and deleted.
    meddles: bool,
    /// Commits fail, and processes die.
    breaks: bool,
}

/// A job that gives its name, fails now and then, or adds another to its workflow.
#[derive(Serialize, Deserialize)]
struct Part(String);

impl Payload for Part {
    const KIND: &'static str = "part";

    fn defaults(job: NewJob) -> NewJob {
        job.max_attempts(2)
    }
}

impl Part {
    fn job(name: &str) -> NewJob {
        NewJob::of(&Self(name.to_owned()))
    }
}

/// Who decides how jobs end, and sees each of them run.
#[derive(Clone)]
struct Witness(Arc<Mutex<Seen>>);

struct Seen {
    dice: Dice,
    /// How often each job gave its value.
    gave: HashMap<JobId, u32>,
    wrong: Vec<String>,
}

fn part(job: Part, ctx: &Context) -> Result<String, Failure> {
    let witness = ctx.state::<Witness>()?;
    let open = ctx.inputs()?.filter(|input| input.as_ref().is_ok_and(|input| !input.status.is_terminal())).count();
    let chance = {
        let mut seen = witness.0.lock().expect("no panic");
        if open > 0 {
            seen.wrong.push(format!("{} runs before {open} that it waits for", job.0));
        }
        seen.dice.below(100)
    };
    match chance {
        0..8 => {
            // What is closed takes none.
            let _ = ctx.enqueue_in_workflow([Part::job("late")]);
        }
        76..80 => return Err(Failure::retry("again")),
        80.. => return Err(Failure::fatal("no")),
        _ => {}
    }
    *witness.0.lock().expect("no panic").gave.entry(ctx.id()).or_default() += 1;
    Ok(job.0)
}

struct Model {
    t: Harness,
    dice: Dice,
    rules: Rules,
    witness: Witness,
    flows: Vec<WorkflowId>,
    jobs: Vec<JobId>,
}

impl Model {
    fn new(seed: u64, rules: Rules) -> jobmill::Result<Self> {
        let seen = Seen { dice: Dice(seed * 77), gave: HashMap::new(), wrong: Vec::new() };
        let witness = Witness(Arc::new(Mutex::new(seen)));
        let state = witness.clone();
        let t = Harness::new(move |builder| {
            let retention = Retention { completed: Some(secs(300)), ..Retention::default() };
            builder.durability(Durability::Normal).retention(retention).handle(part).state(state.clone())
        })?;
        t.client().set_limit(&Limit::new("few").concurrency(2))?;
        t.client().set_limit(&Limit::new("slow").rate(3, secs(5)))?;
        Ok(Self { t, dice: Dice(seed), rules, witness, flows: Vec::new(), jobs: Vec::new() })
    }

    fn job(&mut self, name: &str) -> NewJob {
        let dice = &mut self.dice;
        let mut job = if dice.below(12) == 0 { NewJob::json("unknown", &name) } else { Part::job(name) };
        if dice.below(5) == 0 {
            job = job.limit(LimitUse::of("few").key(dice.pick(&["0", "1"])));
        }
        if dice.below(6) == 0 {
            job = job.limit(LimitUse::of("slow"));
        }
        if dice.below(6) == 0 {
            job = job.delay(secs(dice.below(20) as u64));
        }
        if dice.below(9) == 0 {
            job = job.expires_in(secs(1 + dice.below(30) as u64));
        }
        if dice.below(6) == 0 {
            job = job.queue("q");
        }
        if dice.below(8) == 0 { job.user(dice.pick(&["ann", "bob"])) } else { job }
    }

    fn workflow(&mut self) -> NewWorkflow<'static> {
        let mut workflow = NewWorkflow::new("w");
        for node in 0..1 + self.dice.below(6) {
            let name = format!("n{node}");
            workflow = if self.dice.below(3) == 0 {
                let jobs: Vec<NewJob> = (0..self.dice.below(5)).map(|at| self.job(&format!("{name}.{at}"))).collect();
                workflow.jobs(name, jobs)
            } else {
                let job = self.job(&name);
                workflow.job(name, job)
            };
            for before in 0..node {
                if self.dice.below(3) == 0 {
                    workflow = workflow.after_with(format!("n{before}"), self.dice.pick(&OnFailure::ALL));
                }
            }
        }
        if self.dice.percent(50) {
            workflow = workflow.on_success(Part::job("success"));
        }
        if self.dice.percent(50) {
            workflow = workflow.on_failure(Part::job("failure"));
        }
        if self.dice.percent(50) { workflow.on_end(Part::job("end")) } else { workflow }
    }

    /// A job of no workflow that follows some others.
    fn follower(&mut self) -> NewJob {
        let mut job = self.job("alone");
        let mut needs = Vec::new();
        for _ in 0..self.dice.below(3).min(self.jobs.len()) {
            let need = self.dice.pick(&self.jobs);
            if !needs.contains(&need) {
                needs.push(need);
                job = job.after_with(need, self.dice.pick(&OnFailure::ALL));
            }
        }
        job
    }

    /// Does one thing. What the state of a job or a workflow forbids is no error, and a fault is none if there may be any.
    fn step(&mut self) -> jobmill::Result<()> {
        if self.rules.breaks && self.dice.below(6) == 0 {
            let fault = self.dice.pick(&[Fault::Before, Fault::After]);
            self.t.faults().fail(1 + self.dice.below(4) as u64, fault);
        }
        match self.act() {
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(()),
            Err(error) if self.rules.breaks && error.kind() == ErrorKind::Storage => Ok(()),
            done => done,
        }
    }

    fn act(&mut self) -> jobmill::Result<()> {
        let client = self.t.client().clone();
        let flow = self.flows.get(self.dice.below(self.flows.len() + 1)).copied();
        match (self.dice.below(17), flow) {
            (0 | 1, _) => {
                let workflow = self.workflow();
                self.flows.push(client.start_workflow(workflow)?);
            }
            (2 | 3, _) => {
                let job = self.follower();
                self.jobs.push(client.enqueue(job)?.id());
            }
            (4, _) => {
                let mut own = client.connection()?;
                let tx = own.transaction().expect("a transaction");
                let job = self.follower();
                let id = client.enqueue_in(&tx, job)?.id();
                tx.commit().expect("a commit");
                self.jobs.push(id);
            }
            (5, Some(flow)) => drop(client.cancel_workflow(flow)?),
            (6 | 7, Some(flow)) => client.retry_workflow(flow)?,
            (8 | 9, _) if self.rules.meddles => {
                let all = client.list(Query::new().limit(200))?.jobs;
                let Some(job) = all.get(self.dice.below(all.len() + 1)) else { return Ok(()) };
                match self.dice.below(4) {
                    0 => drop(client.cancel(job.id)?),
                    1 => drop(client.delete(job.id)?),
                    _ => client.retry(job.id)?,
                }
            }
            (10, _) => {
                if self.dice.percent(50) {
                    client.pause("q")?
                } else {
                    client.resume("q")?
                }
            }
            (11, _) if self.rules.breaks => {
                self.t.faults().heal();
                self.t.crash()?;
            }
            (12, _) => self.t.engine().maintain()?,
            _ => {
                self.t.advance(secs(self.dice.below(15) as u64));
                self.t.drain()?;
            }
        }
        Ok(())
    }

    /// Lets everything come to its end, and asserts that it has come to the right one.
    fn end(mut self, context: &str) -> jobmill::Result<()> {
        self.t.faults().heal();
        if self.rules.breaks {
            self.t.crash()?;
        }
        let client = self.t.client().clone();
        client.resume("q")?;
        let unknown = Query::new().kinds(["unknown"]);
        client.select(unknown.clone())?.cancel()?;
        for _ in 0..100 {
            self.t.advance(secs(10));
            self.t.drain()?;
        }
        client.select(unknown)?.cancel()?;
        self.t.drain()?;
        sound(&client);
        assert_eq!(
            query::<i64>(&client, "SELECT count(*) FROM jobmill_flow_work"),
            0,
            "{context}: something is undone"
        );
        let open = Query::new().statuses([Status::Created, Status::Pending, Status::Running]).limit(1);
        if let Some(job) = client.list(open)?.jobs.first() {
            panic!("{context}: {} waits for ever: {}", job.id, client.explain(job.id)?);
        }
        for flow in &self.flows {
            // Those that have completed are pruned, by and by.
            if let Ok(workflow) = client.workflow(*flow) {
                assert!(workflow.status.is_terminal(), "{context}: {workflow:#?}");
                is_counted(&client, &workflow, context)?;
                if !self.rules.meddles {
                    workflow.nodes.iter().for_each(|node| is_right(&client, &workflow, node, context));
                }
            }
        }
        let seen = self.witness.0.lock().expect("no panic");
        if !self.rules.meddles {
            assert_eq!(seen.wrong, Vec::<String>::new(), "{context}");
        }
        if !self.rules.breaks {
            let twice = seen.gave.iter().find(|(_, times)| **times > 1);
            assert_eq!(twice, None, "{context}: a job that has completed runs no more");
        }
        assert!(seen.gave.len() > 10, "{context}: {} jobs say little", seen.gave.len());
        Ok(())
    }
}

/// Asserts that a workflow counts what the ledger lists of it.
fn is_counted(client: &Client, workflow: &Workflow, context: &str) -> jobmill::Result<()> {
    let callbacks: Vec<JobId> =
        workflow.nodes.iter().filter(|node| node.is_callback).filter_map(|node| node.job).collect();
    let listed = client.list(Query::new().workflow(workflow.id).limit(1000))?.jobs;
    for status in Status::ALL {
        let jobs = listed.iter().filter(|job| job.status == status && !callbacks.contains(&job.id)).count();
        assert_eq!(workflow.jobs.of(status), jobs as u64, "{context}: {status} of {workflow:#?}");
    }
    Ok(())
}

/// Asserts that a job or a stage has ended as its needs ask. Nobody has meddled with it.
fn is_right(client: &Client, workflow: &Workflow, node: &WorkflowNode, context: &str) {
    // Of those that have ended, the completed ones go after a while.
    let is_well = |name: &String| {
        workflow.node(name).and_then(|need| need.status).is_none_or(|status| status == Status::Completed)
    };
    let ill: Vec<OnFailure> = node
        .needs
        .iter()
        .filter(|(name, on_failure)| *on_failure != OnFailure::Continue && !is_well(name))
        .map(|(_, on_failure)| *on_failure)
        .collect();
    let Some(status) = node.status else { return };
    let context = format!("{context}: {} of {workflow:#?}", node.name);
    let is_whole_well = workflow.status == Status::Completed;
    match status {
        Status::Completed if !node.is_callback => assert!(ill.is_empty(), "{context}"),
        // One that ran after an earlier end is not run again.
        Status::Completed => {}
        Status::Cancelled if node.name == "on_success" => assert!(!is_whole_well, "{context}"),
        Status::Cancelled if node.name == "on_failure" => assert!(is_whole_well, "{context}"),
        Status::Cancelled if node.is_callback => panic!("{context}"),
        // Jobs that nobody can run were cancelled by hand.
        Status::Cancelled if workflow.cancel_requested_at.is_none() && node.job.is_some() => {
            let job = client.get(node.job.expect("a job")).expect("a job");
            assert!(job.kind.as_deref() == Some("unknown") || !ill.is_empty(), "{context}");
        }
        Status::Failed if node.job.is_some() => {
            let job = client.get(node.job.expect("a job")).expect("a job");
            let by_need = job.failure_reason == Some(FailureReason::Dependency);
            assert_eq!(by_need, !ill.is_empty(), "{context}");
            assert!(!by_need || ill.contains(&OnFailure::Fail), "{context}");
        }
        _ => {}
    }
}

fn run(seeds: std::ops::Range<u64>, rules: Rules) -> jobmill::Result<()> {
    for seed in seeds {
        let mut model = Model::new(seed, rules)?;
        for step in 0..80 {
            let stepped = model.step();
            assert!(stepped.is_ok(), "seed {seed}, step {step}: {stepped:?}");
        }
        model.end(&format!("seed {seed}"))?;
    }
    Ok(())
}

#[test]
fn workflows_that_are_cancelled_and_sent_again_end_as_they_ask() -> jobmill::Result<()> {
    run(0..4, Rules::default())
}

#[test]
fn neither_deaths_nor_faults_change_how_workflows_end() -> jobmill::Result<()> {
    run(10..14, Rules { breaks: true, ..Rules::default() })
}

#[test]
fn workflows_end_whatever_is_done_to_their_jobs() -> jobmill::Result<()> {
    run(20..24, Rules { meddles: true, breaks: true })
}
