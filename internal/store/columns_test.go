package store

import (
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/pgtest"
)

// What columns reads is what pgx's own Scan would have read, in both formats that a connection may speak.
func TestColumnsReadWhatScanReads(t *testing.T) {
	const values = `select 7::smallint, (-7)::int, 9007199254740993::bigint, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, 'é'::text,
		'2026-03-14 15:09:26.535897+00'::timestamptz, '1999-12-31 23:59:59.999999+00'::timestamptz,
		interval '1 day 2 hours -0.000001 seconds', array['a', 'b,"c'], null::int, null::text, null::timestamptz, null::interval, null::text[], null::uuid`
	type row struct {
		Small, Int, Big int64
		ID              [16]byte
		Text            string
		At, Before      time.Time
		Span            time.Duration
		List            []string
		NoInt           int64
		NoText          string
		NoTime          *time.Time
		NoSpan          time.Duration
		NoList          []string
		NoID            [16]byte
	}
	conn := pgtest.New(t).Conn(t)
	var want row
	var noInt *int64
	var noText *string
	var noSpan *time.Duration
	var noID *[16]byte
	if err := conn.QueryRow(t.Context(), values).Scan(&want.Small, &want.Int, &want.Big, &want.ID, &want.Text, &want.At, &want.Before, &want.Span,
		&want.List, &noInt, &noText, &want.NoTime, &noSpan, &want.NoList, &noID); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]pgx.QueryExecMode{"binary": pgx.QueryExecModeCacheStatement, "text": pgx.QueryExecModeSimpleProtocol} {
		rows, err := conn.Query(t.Context(), values, mode)
		if err != nil {
			t.Fatal(err)
		}
		c := columns{fields: rows.FieldDescriptions(), types: conn.TypeMap()}
		for rows.Next() {
			c.values, c.at = rows.RawValues(), 0
			got := row{
				Small: c.int64(), Int: c.int64(), Big: c.int64(), ID: c.uuid(), Text: c.text(""), At: c.time(), Before: c.time(), Span: c.duration(),
				List: c.texts(), NoInt: c.int64(), NoText: c.text(""), NoTime: c.timeOrNil(), NoSpan: c.duration(), NoList: c.texts(), NoID: c.uuid(),
			}
			if !got.At.Equal(want.At) || !got.Before.Equal(want.Before) {
				t.Errorf("%s: %v and %v, want %v and %v", name, got.At, got.Before, want.At, want.Before)
			}
			got.At, got.Before = want.At, want.Before
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %+v\nwant %+v", name, got, want)
			}
		}
		if c.err != nil || rows.Err() != nil {
			t.Error(name, c.err, rows.Err())
		}
	}
}
