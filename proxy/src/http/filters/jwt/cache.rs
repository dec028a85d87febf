//! Good tokens of one provider, so that their signatures are checked once (Envoy's `JwtCacheConfig`).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::jwks::Jwks;
use super::token::Token;
use crate::model::jwt::JwtCache;

/// The tokens that were used last.
#[derive(Debug)]
pub(super) struct TokenCache {
    limits: JwtCache,
    tokens: HashMap<Rc<str>, Entry>,
    /// By when they were used: the first goes first.
    order: BTreeMap<u64, Rc<str>>,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    token: Rc<Token>,
    /// What the signature was checked against.
    keys: Rc<Jwks>,
    used: u64,
}

impl TokenCache {
    pub(super) fn new(limits: JwtCache) -> Self {
        Self {
            limits,
            tokens: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    /// The token that `text` is, if its signature was checked against `keys`: with other keys, after a
    /// rotation, it must be checked again (Envoy goes on with it). Its times are the caller's to check.
    pub(super) fn get(&mut self, text: &str, keys: Option<&Rc<Jwks>>) -> Option<Rc<Token>> {
        let entry = self.tokens.get_mut(text)?;
        if !keys.is_some_and(|keys| Rc::ptr_eq(keys, &entry.keys)) {
            self.remove(text);
            return None;
        }
        self.uses += 1;
        if let Some(text) = self.order.remove(&entry.used) {
            self.order.insert(self.uses, text);
        }
        entry.used = self.uses;
        Some(Rc::clone(&entry.token))
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, text: &str) {
        if let Some(entry) = self.tokens.remove(text) {
            self.order.remove(&entry.used);
        }
    }

    /// Remembers one, unless it is too long. The one that was not used for longest makes room.
    pub(super) fn insert(&mut self, text: &str, token: Rc<Token>, keys: Rc<Jwks>) {
        if text.len() > self.limits.max_token_size as usize {
            return;
        }
        self.remove(text);
        while self.tokens.len() >= self.limits.size as usize {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            self.tokens.remove(&oldest);
        }
        self.uses += 1;
        let text: Rc<str> = text.into();
        self.order.insert(self.uses, Rc::clone(&text));
        let used = self.uses;
        self.tokens.insert(text, Entry { token, keys, used });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Rc<Jwks> {
        Rc::new(Jwks::parse(b"{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}").unwrap())
    }

    #[test]
    fn the_one_that_was_not_used_for_longest_goes() {
        // {"alg":"HS256"} and {}
        let token = Rc::new(Token::parse("eyJhbGciOiJIUzI1NiJ9.e30.AA").unwrap());
        let keys = keys();
        let mut cache = TokenCache::new(JwtCache {
            size: 2,
            max_token_size: 3,
        });
        let insert = |cache: &mut TokenCache, text: &str| {
            cache.insert(text, Rc::clone(&token), Rc::clone(&keys));
        };
        insert(&mut cache, "a");
        insert(&mut cache, "b");
        assert!(cache.get("a", Some(&keys)).is_some());
        insert(&mut cache, "c");
        assert!(cache.get("b", Some(&keys)).is_none());
        assert!(cache.get("a", Some(&keys)).is_some());
        insert(&mut cache, "long");
        assert!(cache.get("long", Some(&keys)).is_none());
        insert(&mut cache, "a");
        assert_eq!((cache.tokens.len(), cache.order.len()), (2, 2));
        cache.remove("a");
        assert!(cache.get("a", Some(&keys)).is_none());
        assert_eq!((cache.tokens.len(), cache.order.len()), (1, 1));
    }

    #[test]
    fn other_keys_must_check_it_again() {
        let token = Rc::new(Token::parse("eyJhbGciOiJIUzI1NiJ9.e30.AA").unwrap());
        let keys = [keys(), keys()];
        for other in [None, Some(&keys[1])] {
            let mut cache = TokenCache::new(JwtCache {
                size: 2,
                max_token_size: 3,
            });
            cache.insert("a", Rc::clone(&token), Rc::clone(&keys[0]));
            assert!(cache.get("a", other).is_none());
            assert!(cache.get("a", Some(&keys[0])).is_none(), "it is forgotten");
        }
    }
}
