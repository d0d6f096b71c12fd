//! Users and groups of containers' processes.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;

use super::{BUCKET, security};
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::PREDEFINED_GROUP;
use crate::conformance::spec::{Group, Skip, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let bucket = Group::new(BUCKET)
        .spec("runtime should support SupplementalGroups", |c| Box::pin(groups(c)))
        .spec("runtime should support RunAsUser", |c| Box::pin(user(c)))
        .spec("runtime should support RunAsUserName", |c| Box::pin(user_name(c)))
        .spec("runtime should support RunAsGroup", |c| Box::pin(group(c)))
        .spec("runtime should return error if RunAsGroup is set without RunAsUser", |c| {
            Box::pin(group_without_user(c))
        })
        .done();
    let merge = Group::new("Security Context > SupplementalGroupsPolicy > when SupplementalGroupsPolicy=Merge (Default)")
        .spec("if the container's primary UID belongs to some groups in the image, runtime should add SupplementalGroups to them", |c| {
            Box::pin(policy(c, cri::SupplementalGroupsPolicy::Merge, &[1000, 1234, 50000]))
        })
        .done();
    let strict = Group::new("Security Context > SupplementalGroupsPolicy > when SupplementalGroupsPolicy=Strict")
        .spec("even if the container's primary UID belongs to some groups in the image, runtime should not add SupplementalGroups to them", |c| {
            Box::pin(policy(c, cri::SupplementalGroupsPolicy::Strict, &[1000, 1234]))
        })
        .done();
    [bucket, merge, strict].concat()
}

async fn groups(c: &mut Context) -> Result<()> {
    let id = running(c, |security| security.supplemental_groups = vec![1234, 5678]).await?;
    let seen = c.exec(&id, &["id", "-G"]).await?;
    let seen: Vec<_> = seen.split_whitespace().collect();
    ensure!(seen.contains(&"1234") && seen.contains(&"5678"), "its groups are {seen:?}");
    Ok(())
}

async fn user(c: &mut Context) -> Result<()> {
    let id = running(c, |security| security.run_as_user = number(1001)).await?;
    let seen = c.exec(&id, &["id", "-u"]).await?;
    ensure!(seen == "1001\n", "it runs as {seen:?}");
    Ok(())
}

async fn user_name(c: &mut Context) -> Result<()> {
    let id = running(c, |security| security.run_as_username = "nobody".to_owned()).await?;
    let seen = c.exec(&id, &["id", "-nu"]).await?;
    ensure!(seen == "nobody\n", "it runs as {seen:?}");
    Ok(())
}

async fn group(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox_with_logs().await?;
    let mut config = c.container_config(&["sh", "-c", "echo $(id -u):$(id -g)"]);
    config.log_path = "ids.log".to_owned();
    security(&mut config).run_as_user = number(1001);
    security(&mut config).run_as_group = number(1002);
    c.ended_of(&sandbox, config).await?;
    c.logs(&sandbox, "ids.log", "stdout", "1001:1002").await
}

async fn group_without_user(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    security(&mut config).run_as_group = number(1002);
    c.bring_image(&config).await?;
    let created = c.try_create(&sandbox, config).await;
    ensure!(created.is_err(), "the container was created: {created:?}");
    Ok(())
}

/// User 1000 of the image is a member of its group 50000. The status tells what the first process has, and a command
/// that is executed has the same.
async fn policy(
    c: &mut Context,
    policy: cri::SupplementalGroupsPolicy,
    expected: &[i64],
) -> Result<()> {
    let answer = c.client.runtime.status(cri::StatusRequest::default()).await?.into_inner();
    if !answer.features.is_some_and(|features| features.supplemental_groups_policy) {
        return Err(Skip("Status tells no supplemental_groups_policy".to_owned()).into());
    }
    let sandbox = c.sandbox_with_logs().await?;
    let mut config = c.container_config(&["sh", "-c", "id -G; exec sleep 3600"]);
    config.image = Some(image_spec(PREDEFINED_GROUP));
    config.log_path = "groups.log".to_owned();
    security(&mut config).run_as_user = number(1000);
    security(&mut config).supplemental_groups = vec![1234];
    security(&mut config).supplemental_groups_policy = policy as i32;
    let id = c.running_of(&sandbox, config).await?;

    let mut told = None;
    let seen = c
        .eventually("ContainerStatus tells the user", async |c| {
            told = c.status(&id).await?.user.and_then(|user| user.linux);
            let Some(user) = &mut told else { return Ok(false) };
            user.supplemental_groups.sort_unstable();
            Ok((user.uid, user.gid, user.supplemental_groups.as_slice()) == (1000, 1000, expected))
        })
        .await;
    seen.with_context(|| format!("it tells {told:?}"))?;
    let words: Vec<_> = expected.iter().map(i64::to_string).collect();
    let line = words.join(" ");
    c.logs(&sandbox, "groups.log", "stdout", &line).await.context("the first process")?;
    let seen = c.exec(&id, &["id", "-G"]).await?;
    ensure!(seen.trim() == line, "a command has the groups {seen:?}");
    Ok(())
}

async fn running(
    c: &mut Context,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> Result<String> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    change(security(&mut config));
    c.running_of(&sandbox, config).await
}

fn number(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}
