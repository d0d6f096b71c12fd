//! Who a container runs as: names of the image become numbers.
//!
//! The image's `/etc/passwd` and `/etc/group` are read within the container's root file system, whatever links they are, and
//! only as far as a bound. A user that an image does not know is fine as a number, and refused as a name.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use infranetes_sdk::v1::Security;
use infranetes_sdk::{ProviderError, Result};
use rustix::fs::OFlags;

use super::spec::User;
use crate::rootfs::open_in;

/// The user that a security context asks for.
pub(crate) fn user(security: &Security, root: &OwnedFd) -> Result<User> {
    resolve(security, &read_small(root, "/etc/passwd"), &read_small(root, "/etc/group"))
}

/// One line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn resolve(security: &Security, passwd: &str, group: &str) -> Result<User> {
    let (wanted, image_group) = wanted(security)?;
    let account = accounts(passwd).find(|account| match wanted {
        Wanted::Number(uid) => account.uid == uid,
        Wanted::Name(name) => account.name == name,
    });
    let uid = match (wanted, &account) {
        (Wanted::Number(uid), _) => uid,
        (Wanted::Name(_), Some(account)) => account.uid,
        (Wanted::Name(name), None) => {
            return Err(ProviderError::invalid(format!("the image knows no user {name:?}")));
        }
    };
    let gid = match (security.gid, image_group) {
        (Some(gid), _) => number(gid, "gid")?,
        (None, Some(name)) => group_id(name, group)?,
        (None, None) => account.as_ref().map_or(0, |account| account.gid),
    };
    // The primary group is always among them: otherwise dropping it would open what it is denied.
    let mut additional_gids = vec![gid];
    if !security.strict_supplemental_groups
        && let Some(account) = &account
    {
        additional_gids.extend(groups_of(account.name, group));
    }
    for gid in &security.supplemental_groups {
        additional_gids.push(number(*gid, "supplemental group")?);
    }
    let mut seen = std::collections::HashSet::new();
    additional_gids.retain(|gid| seen.insert(*gid));
    Ok(User { uid, gid, additional_gids })
}

#[derive(Clone, Copy)]
enum Wanted<'a> {
    Number(u32),
    Name(&'a str),
}

/// The user, and the group that stands behind its colon.
fn wanted(security: &Security) -> Result<(Wanted<'_>, Option<&str>)> {
    if let Some(uid) = security.uid {
        return Ok((Wanted::Number(number(uid, "uid")?), None));
    }
    if !security.user_name.is_empty() {
        return Ok((Wanted::Name(&security.user_name), None));
    }
    if security.gid.is_some() && security.image_user.is_empty() {
        return Err(ProviderError::invalid("a group was given without a user"));
    }
    let (user, group) = match security.image_user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (security.image_user.as_str(), None),
    };
    let user = match (user, user.parse::<u32>()) {
        ("", _) => Wanted::Number(0),
        (_, Ok(uid)) => Wanted::Number(number(uid.into(), "uid")?),
        (name, Err(_)) => Wanted::Name(name),
    };
    Ok((user, group))
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid })
    })
}

/// Name, id and members of each line.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let is_member = |members: &str| members.split(',').any(|member| member.trim() == user);
    groups(group).filter(|(_, _, members)| is_member(members)).map(|(_, gid, _)| gid).collect()
}

fn group_id(text: &str, group: &str) -> Result<u32> {
    if let Ok(gid) = text.parse::<u32>() {
        return number(gid.into(), "gid");
    }
    let found = groups(group).find(|(name, _, _)| *name == text);
    found
        .map(|(_, gid, _)| gid)
        .ok_or_else(|| ProviderError::invalid(format!("the image knows no group {text:?}")))
}

fn number(value: i64, what: &str) -> Result<u32> {
    // The highest one means "no change" to the kernel.
    u32::try_from(value)
        .ok()
        .filter(|value| *value != u32::MAX)
        .ok_or_else(|| ProviderError::invalid(format!("{value} is no {what}")))
}

/// A file of the image, or nothing: an image may have none, and what is no file is none.
fn read_small(root: &OwnedFd, path: &str) -> String {
    // Without waiting: it may be a fifo.
    let Ok(file) = open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) else {
        return String::new();
    };
    let file = File::from(file);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match file.take(FILE_MAX).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

const FILE_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\nstaff:x:51:web\n";

    fn check(security: Security, expected: (u32, u32, &[u32])) {
        let user = resolve(&security, PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.additional_gids.as_slice()), expected);
    }

    fn image_user(user: &str) -> Security {
        Security { image_user: user.into(), ..Default::default() }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        check(Security::default(), (0, 0, &[0]));
        check(image_user("web"), (33, 34, &[34, 50, 51]));
        check(image_user("33"), (33, 34, &[34, 50, 51]));
        check(image_user("web:logs"), (33, 50, &[50, 51]));
        check(image_user("web:7"), (33, 7, &[7, 50, 51]));
        check(image_user("1234"), (1234, 0, &[0]));
        check(image_user("1234:"), (1234, 0, &[0]));
        check(Security { uid: Some(33), ..image_user("nobody") }, (33, 34, &[34, 50, 51]));
        check(Security { user_name: "web".into(), ..Default::default() }, (33, 34, &[34, 50, 51]));
        check(
            Security {
                uid: Some(1),
                gid: Some(2),
                supplemental_groups: vec![3, 2],
                ..Default::default()
            },
            (1, 2, &[2, 3]),
        );
        check(
            Security {
                strict_supplemental_groups: true,
                supplemental_groups: vec![9],
                ..image_user("web")
            },
            (33, 34, &[34, 9]),
        );
    }

    #[test]
    fn what_the_image_does_not_know_is_refused_as_a_name() {
        for security in [
            image_user("nobody"),
            image_user("web:nobody"),
            image_user("4294967295"),
            Security { uid: Some(-1), ..Default::default() },
            Security { uid: Some(1 << 32), ..Default::default() },
            Security { uid: Some(0xffff_ffff), ..Default::default() },
            Security { gid: Some(5), ..Default::default() },
        ] {
            resolve(&security, PASSWD, GROUP).unwrap_err();
        }
    }
}
