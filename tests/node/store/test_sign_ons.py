"""What ends here with a sign-in of the hospital (Back-Channel Logout 1.0, 2.7)."""

from node.domain.access import Role
from node.domain.scopes import Scopes, read_scopes
from node.store import clients, people, refreshes, sign_ons
from node.store.store import Store

ISSUER = "https://idp.test"


async def test_programs_keep_what_they_may_do_when_she_is_away(store: Store) -> None:
    now = store.clock()
    async with store.db.transaction() as tx:
        her = await people.arrive(
            tx,
            issuer=ISSUER,
            subject="u-1",
            login="li",
            display="Li",
            roles=[Role.RADIOLOGIST],
            now=now,
        )
        program = await clients.register(
            tx,
            name="viewer",
            roles=[],
            scopes="user/*.rs online_access offline_access",
            redirect_uris=["https://app.test/back"],
            now=now,
        )
        kept = []
        for offline in (False, True):
            family, _ = await refreshes.begin(
                tx,
                program.client_id,
                her.user_id,
                code=f"c{offline}",
                scopes="user/*.rs",
                patient_id=None,
                about={},
                offline=offline,
                now=now,
            )
            kept.append(family.family_id)
        for family_id in (None, *kept):
            await clients.open_token(
                tx,
                program.client_id,
                Scopes(read_scopes("user/*.rs")),
                now=now,
                user_id=her.user_id,
                family_id=family_id,
            )
        await sign_ons.note(tx, ISSUER, "s-1", her.user_id, now=now)
        assert await sign_ons.whom(tx, ISSUER, subject=None, sid="s-1") == {her.user_id}
        assert await sign_ons.whom(tx, "https://x", subject="u-1", sid="s-1") == set()
        assert await sign_ons.end(tx, her.user_id, sid="s-1") == 0
        families = await refreshes.list_families(tx, now=now)
        assert [one.family_id for one, _, _ in families] == [kept[1]]
        left = await tx.fetch("select family_id from client_tokens")
        assert [row["family_id"] for row in left] == [kept[1]]
