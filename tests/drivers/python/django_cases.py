"""Django's ORM over psycopg 3: cases."""

import os
import threading

import django
from django.conf import settings

settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["PGDATABASE"], "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
    "USER": os.environ["PGUSER"], "PASSWORD": os.environ["PGPASSWORD"],
    "OPTIONS": {"application_name": os.environ["PGAPPNAME"]},
}}, INSTALLED_APPS=[], USE_TZ=True)
django.setup()

from django.db import DatabaseError, connection, models, transaction as transactions  # noqa: E402

from cases import APP, OTHER, ROWS, TENANT, TOKEN, run, sqlstate  # noqa: E402


class Item(models.Model):
    owner = models.TextField(db_default=models.Func(function="owner"))
    id = models.IntegerField(primary_key=True)
    body = models.TextField(null=True)

    class Meta:
        app_label, db_table = "cases", "items"


def fresh():
    connection.close()
    Item.objects.all().delete()


def value(text, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(text, parameters)
        return cursor.fetchone()[0] if cursor.description else None


def connect():
    fresh()
    return f"{value('SELECT 1')} {value('SHOW application_name') == APP} {connection.pg_version} {value('SHOW TimeZone')}"


def prepared():
    fresh()
    Item.objects.create(id=1, body="x")
    return f"{[Item.objects.filter(id=n % 2).count() for n in range(20)]}"


def transaction():
    fresh()
    with transactions.atomic():
        Item.objects.create(id=1)
        try:
            with transactions.atomic():
                Item.objects.create(id=2)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    with transactions.atomic():
        locked = Item.objects.select_for_update(nowait=True).get(id=1).id
    return f"{Item.objects.count()} {locked}"


def error():
    fresh()
    Item.objects.create(id=1)
    states = []
    for text in ("INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"):
        try:
            value(text)
        except DatabaseError as e:
            states.append(sqlstate(e))
    return f"{states} {value('SELECT 1')}"


def batch():
    fresh()
    Item.objects.bulk_create((Item(id=n, body="b") for n in range(ROWS)), batch_size=300)
    Item.objects.bulk_update([Item(id=n, body="c") for n in range(ROWS)], ["body"], batch_size=300)
    return f"{Item.objects.aggregate(models.Count('id'), models.Sum('id'), models.Max('body'))}"


def cursor():
    batch()
    with transactions.atomic():
        inside = sum(1 for _ in Item.objects.iterator(chunk_size=100))
    # Outside a transaction Django's server-side cursor is WITH HOLD.
    return f"{inside} {sum(1 for _ in Item.objects.iterator(chunk_size=100))}"


def cursor_off():
    """As Django's documentation tells to do before a transaction pooler."""
    batch()
    connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = True
    try:
        return f"{sum(1 for _ in Item.objects.iterator(chunk_size=100))}"
    finally:
        connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = False


def cancel():
    fresh()
    connection.ensure_connection()
    threading.Timer(0.3, connection.connection.cancel_safe).start()
    try:
        value("SELECT pg_sleep(20)")
    except DatabaseError as e:
        return f"{sqlstate(e)} {value('SELECT 1')}"


def setting():
    fresh()
    seen = []
    value("SET work_mem = '7MB'")
    seen.append(value("SHOW work_mem"))
    with transactions.atomic():
        value("SET LOCAL work_mem = '9MB'")
        seen.append(value("SHOW work_mem"))
    seen.append(value("SHOW work_mem"))
    value("RESET work_mem")
    seen.append(value("SHOW work_mem"))
    return " ".join(seen)


def catalogue():
    fresh()
    with connection.cursor() as cursor:
        names = sorted(table.name for table in connection.introspection.get_table_list(cursor))
        constraints = connection.introspection.get_constraints(cursor, "items")
    return f"{names} {sorted(constraints)}"


def concurrent():
    fresh()

    def work(n):
        for k in range(20):
            Item.objects.create(id=n * 100 + k)
        connection.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{Item.objects.aggregate(models.Count('id'), models.Sum('id'))}"


def session_state():
    fresh()
    try:
        value("CREATE TEMP TABLE kept (n int)")
        value("INSERT INTO kept VALUES (1)")
        return f"{value('SELECT n FROM kept')}"
    except DatabaseError as e:
        return sqlstate(e)


def tenant():
    if not TENANT:
        return None
    fresh()
    Item.objects.create(id=1)
    owners = list(Item.objects.values_list("owner", flat=True))
    return "own" if owners == [TENANT] else f"{owners}"


def token():
    if not TOKEN:
        return None
    fresh()
    seen = [value("SELECT owner()")]
    value("SELECT set_config('pgtenant.token', %s, false)", TOKEN)
    seen.append(value("SELECT owner()"))
    value("RESET pgtenant.token")
    seen.append(value("SELECT owner()"))
    return " ".join({TENANT: "own", OTHER: "other"}.get(owner, owner) for owner in seen)


run(f"Django {django.__version__}",
    [connect, prepared, transaction, error, batch, cursor, cursor_off, cancel, setting, catalogue, concurrent,
     session_state, tenant, token])
