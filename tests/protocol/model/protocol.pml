/*
 * Votes and leases of three nodes, for Spin: `python tests/protocol/model/check.py` checks it.
 *
 * The names Boot, Vote 1-3, Count and Act are the steps of one poll in docs/protocol.md. Every step
 * below is atomic, and Spin tries every order of them, any number of times: any number of
 * given up votes, crashes and reboots, none of them counted or bounded.
 *
 * The claim is the assert where a staged probe is committed: none appears while another node serves
 * one.
 *
 * What is left out, and why that hides no error:
 * - Who is preferred, who sees a quorum, who yields. A node here may ask, vote, renew, step down
 *   and give up whenever the rules of safety allow it: the protocol does a part of what is checked.
 *   A hung agent, a frozen node, a cut link and a lost request are nodes that do not take a step.
 * - Time is a global tick. A lease and a promise of the same length D stand for the worst drift:
 *   L = D (1 - rho) / (1 + rho) ticks of the slowest clock last no longer than D of the fastest.
 *   D is 2 or 3 ticks instead of 27 s; any number of steps fits into one tick.
 * - Stamps. What matters of one is how long its lease still runs (`left`), and what it is worth to
 *   the node that wrote it: still counted, given up, or forgotten in a reboot. That tells two
 *   stamps apart as (epoch, stamp, released) does, without numbers that grow for ever.
 * - A stamp given up, forgotten or run out that a slow reader still grants: it binds the voter
 *   and helps nobody, as does a voter that takes no step.
 * - Reading a request is no step of its own: a voter may act on any stamp ever shown, however
 *   late. Reading a vote is one, apart from the grant and from the marker that shows it.
 *
 * Not covered: five nodes; forgery; steps of the wall clock; Apache's check of `lease_until`; a
 * fence that comes late, as on a machine that is frozen as a whole (the clock below waits for it);
 * state lost without a reboot; whether anybody ever becomes active.
 */

#ifndef D
#define D 3                /* ticks for which a vote binds the voter */
#endif
#ifdef LEASE_LONGER_THAN_PROMISE
#define L (D + 1)
#else
#define L D                /* ticks for which a grant lasts for the candidate, from its stamp */
#endif

/* What a node is. A staged probe is one that is written, fenced, and not yet renamed. */
#define PASSIVE 0
#define STAGED 1
#define ACTIVE 2
#define OFF 3

/* What a stamp that somebody granted is worth to the candidate that wrote it. */
#define COUNTED 0
#define GIVEN_UP 1         /* given up, and no marker says so yet */
#define RELEASED 2         /* its marker says so: the voter that reads it is free */
#define FORGOTTEN 3        /* the candidate rebooted: another epoch */

typedef Node {
    unsigned role : 2;
    unsigned fence : 3;        /* ticks until the fence removes probe and staged file, 0: none */
    unsigned hold : 3;         /* ticks for which it does not vote: it has just booted */

    unsigned vote : 2;         /* the candidate it promised itself to */
    unsigned promise : 3;      /* ticks for which that binds, 0: no promise */
    unsigned left : 3;         /* ticks that the granted stamp's lease still runs */
    unsigned worth : 2;        /* COUNTED, GIVEN_UP, RELEASED or FORGOTTEN */

    unsigned asks : 4;         /* every stamp in a marker ever shown, as a set: bit k - 1 is
                                  the stamp whose lease runs for k more ticks */
    unsigned shown : 2;        /* the vote in its marker: for whom, */
    unsigned shown_left : 3;   /* and what is left of that stamp's lease, 0: no vote */

    unsigned granted_a : 3;    /* ticks left of the newest stamp it saw granted by its peer A */
    unsigned granted_b : 3     /* and by its peer B */
};

Node node[3];

#define me _pid
#define A ((_pid + 1) % 3)
#define B ((_pid + 2) % 3)
#define ME node[_pid]

#define min(x, y) ((x) < (y) -> (x) : (y))
#define max(x, y) ((x) > (y) -> (x) : (y))
#define count_down(x) x = ((x) > 0 -> (x) - 1 : 0)

#define up (ME.role != OFF)
#define serves(n) (node[n].role == ACTIVE)
#define has_file (ME.role == STAGED || ME.role == ACTIVE)

/* Count: the second newest of three grants is what a majority granted. */
#ifdef OWN_VOTE_NOT_BOUND
#define granted_me ((ME.asks & (1 << (L - 1))) -> L : 0)
#else
#define granted_me ((ME.promise > 0 && ME.vote == me && ME.worth == COUNTED) -> ME.left : 0)
#endif
#define lease max(min(granted_me, max(ME.granted_a, ME.granted_b)), min(ME.granted_a, ME.granted_b))

#ifdef LEASE_FROM_READ
#define lease_shown(v) L
#else
#define lease_shown(v) node[v].shown_left
#endif

/* Vote 1 and 2: without a promise anybody may be granted, with one its holder's newer stamp. */
#ifdef VOTE_TWICE
#define may_grant(c, k) true
#else
#define may_grant(c, k) (ME.promise == 0 || ME.vote == c)
#endif
#define granted_already(c, k) \
    (ME.promise > 0 && ME.vote == c && ME.worth == COUNTED && ME.left >= k)

/* Vote 3: the promise runs for D from the read, which came after the stamp and before now. With
   SHORTEST_PROMISES it came at once; a longer promise could only forbid more. */
#define least_promise(k) (D - (L - (k)))
#ifdef SHORTEST_PROMISES
#define may_bind_for(k, ticks) ((ticks) == least_promise(k))
#else
#define may_bind_for(k, ticks) (least_promise(k) <= (ticks) && (ticks) <= D)
#endif

inline forget_promise(n) {
    node[n].promise = 0; node[n].vote = 0; node[n].left = 0; node[n].worth = COUNTED
}

/* Candidate `me` no longer counts the stamp that n granted. */
inline devalue(n, new_worth) {
    if
    :: node[n].promise > 0 && node[n].vote == me && node[n].worth == COUNTED ->
        node[n].worth = new_worth
    :: else
    fi;
    if
    :: node[n].shown == me -> node[n].shown = 0; node[n].shown_left = 0
    :: else
    fi
}

/* A marker now says what was given up; in a crash before that, nobody ever learns of it. */
inline settle_given_up(n, new_worth) {
    if
    :: node[n].vote == me && node[n].worth == GIVEN_UP -> node[n].worth = new_worth
    :: else
    fi
}

inline forget_grants() {
    ME.granted_a = 0; ME.granted_b = 0; ME.asks = 0
}

inline remove_probe() {
    ME.role = PASSIVE; ME.fence = 0
}

/* Witnesses: the same model, where the claim gives way to the claim that something never happens.
   Spin must refute that, or the model would be safe for want of anything happening. They watch and
   change nothing. */
#ifdef WITNESS
#define WATCH(x) x
byte previous;             /* the node that was active last, plus one; 0: none yet */
bool fenced;               /* the fence took the probe from it */
byte active_ticks[3];      /* ticks for which a node has been active */
byte freed_ticks[3];       /* ticks for which a promise would bind that were ended by giving up */
bool promised[3];          /* had a promise when it crashed */
bool rebooted[3];          /* and came up again */
bool voted_again[3];       /* and voted since */
#define by_other (previous > 0 && previous != me + 1)
#define voters_any(x) \
    ((x[me] && granted_me > 0) || (x[A] && ME.granted_a > 0) || (x[B] && ME.granted_b > 0))
#else
#define WATCH(x) skip
#endif

#if defined ANOTHER_BECOMES_ACTIVE
#define SEEN_AT_COMMIT by_other
#elif defined HANDOVER_BY_RELEASE     /* by a vote that was promised to the other one until then */
#define SEEN_AT_COMMIT (by_other && voters_any(freed_ticks))
#elif defined VOTER_REBOOTS_AND_VOTES
#define SEEN_AT_COMMIT (by_other && voters_any(voted_again))
#elif defined FENCE_THEN_ANOTHER
#define SEEN_AT_COMMIT (by_other && fenced)
#else
#define SEEN_AT_COMMIT false
#endif
#ifdef FENCE_TAKES_STAGED_FILE
#define SEEN_AT_FENCE (ME.role == STAGED)
#else
#define SEEN_AT_FENCE false
#endif
#ifdef RENEWED_PAST_FIRST_LEASE
#define SEEN_AT_RENEW (active_ticks[me] >= L)
#else
#define SEEN_AT_RENEW false
#endif

/* Vote 3. The stamp may be any that c has shown, however long ago it was read. */
#define GRANT(c, k, ticks) \
    :: d_step { up && ME.hold == 0 && k <= L && (node[c].asks & (1 << (k - 1))) && \
                may_grant(c, k) && !granted_already(c, k) && may_bind_for(k, ticks) -> \
        ME.vote = c; ME.left = k; ME.worth = COUNTED; ME.promise = ticks; \
        WATCH(voted_again[me] = rebooted[me]) }
#define GRANT_ANY_STAMP(c, ticks) \
    GRANT(c, 1, ticks) GRANT(c, 2, ticks) GRANT(c, 3, ticks) GRANT(c, 4, ticks)
#define GRANT_ANY(ticks) \
    GRANT_ANY_STAMP(me, ticks) GRANT_ANY_STAMP(A, ticks) GRANT_ANY_STAMP(B, ticks)

/* Count. The newest grant seen is what stays, so that a late or repeated read changes nothing. */
#define READ_VOTE(v, granted) \
    :: d_step { up && node[v].shown == me && node[v].shown_left > 0 && lease_shown(v) > granted -> \
        granted = lease_shown(v) }

active [3] proctype Machine() {
    do
    /* Show: a marker with a new stamp, this node's vote, and what it has given up. */
    :: d_step { up ->
        ME.asks = ME.asks | (1 << (L - 1));
        if
        :: ME.promise > 0 && ME.vote != me && ME.worth == COUNTED ->
            ME.shown = ME.vote; ME.shown_left = ME.left
        :: else -> ME.shown = 0; ME.shown_left = 0
        fi;
        settle_given_up(A, RELEASED); settle_given_up(B, RELEASED) }

    GRANT_ANY(1)
    GRANT_ANY(2)
    GRANT_ANY(3)

    READ_VOTE(A, ME.granted_a)
    READ_VOTE(B, ME.granted_b)

    /* Vote 1: the candidate's marker shows the granted stamp given up. */
    :: d_step { ME.promise > 0 && ME.worth == RELEASED ->
        WATCH(freed_ticks[me] = ME.promise);
        forget_promise(me) }

    /* Act, not active: stage the probe, arm the fence for the end of the lease, look at the clock.
       One step, for the look comes last: a node that was frozen before it goes no further. */
    :: d_step { ME.role == PASSIVE && lease > 0 ->
        ME.role = STAGED; ME.fence = lease }

    /* Act: commit by renaming the staged file, however long after the look at the clock. */
    :: d_step { ME.role == STAGED ->
#ifndef WITNESS
        assert(!serves(A) && !serves(B));
#endif
        WATCH(assert(!(SEEN_AT_COMMIT)));
        ME.role = ACTIVE;
        WATCH(previous = me + 1); WATCH(fenced = false); WATCH(active_ticks[me] = 0) }

    /* Act: renewed, so move the fence forward. */
    :: d_step { ME.role == ACTIVE && lease > ME.fence ->
        WATCH(assert(!(SEEN_AT_RENEW)));
        ME.fence = lease }

    /* The fence, somewhere in the last tick of the lease: that tick is the margin F. */
    :: d_step { has_file && ME.fence == 1 ->
        WATCH(assert(!(SEEN_AT_FENCE)));
        WATCH(fenced = fenced || ME.role == ACTIVE);
#ifdef FENCE_SPARES_STAGED
        if
        :: ME.role == ACTIVE -> ME.role = PASSIVE
        :: else
        fi;
        ME.fence = 0 }
#else
        remove_probe() }
#endif

    /* Act: step down. */
    :: d_step { has_file ->
        remove_probe() }

    /* Act: give up, once the probe is gone. */
#ifdef RELEASE_BEFORE_REMOVAL
    :: d_step { up ->
#else
    :: d_step { ME.role == PASSIVE ->
#endif
#ifndef RELEASED_STAMPS_COUNT
        forget_grants();
#endif
        if
        :: ME.vote == me -> forget_promise(me)
        :: else
        fi;
        devalue(A, GIVEN_UP); devalue(B, GIVEN_UP) }

    /* A crash takes the probe out of service and /run with it. What it has shown may still be on
       its way to a reader, and Apache serves it again after the boot. */
    :: d_step { up ->
        WATCH(promised[me] = ME.promise > 0); WATCH(voted_again[me] = false);
        remove_probe();
        ME.role = OFF; ME.hold = 0;
        forget_promise(me); forget_grants();
        devalue(A, FORGOTTEN); devalue(B, FORGOTTEN);
        settle_given_up(A, FORGOTTEN); settle_given_up(B, FORGOTTEN) }

    /* Boot. */
    :: d_step { ME.role == OFF ->
        ME.role = PASSIVE;
#ifndef NO_HOLD_AFTER_BOOT
        ME.hold = D;
#endif
        WATCH(rebooted[me] = promised[me]) }
    od
}

byte n;

/* Time passes everywhere at once; it waits for nobody but a fence that is due. */
active proctype Clock() {
    do
    :: d_step { node[0].fence != 1 && node[1].fence != 1 && node[2].fence != 1 ->
        n = 0;
        do
        :: n < 3 ->
            count_down(node[n].fence);
            count_down(node[n].hold);
            count_down(node[n].promise);
            count_down(node[n].left);
            count_down(node[n].shown_left);
            count_down(node[n].granted_a);
            count_down(node[n].granted_b);
            node[n].asks = node[n].asks >> 1;
            if
            :: node[n].promise == 0 -> forget_promise(n)
            :: else
            fi;
            if
            :: node[n].shown_left == 0 -> node[n].shown = 0
            :: else
            fi;
            WATCH(active_ticks[n] = (serves(n) -> min(active_ticks[n] + 1, D + 1) : 0));
            WATCH(count_down(freed_ticks[n]));
            n++
        :: else -> break
        od;
        n = 0 }
    od
}
