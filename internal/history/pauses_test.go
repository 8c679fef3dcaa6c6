package history_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/history"
)

// paused writes down a pause of the clean record's handler. Times are seconds; until and ended are SQL.
func paused(handler, since, until, ended string) string {
	return `insert into pause (namespace_id, handler, since, until, reason, ended_at) values (1, '` + handler + `', at(` + since + `), ` + until + `, 'r', ` + ended + `);`
}

func TestPausesOfTheRecord(t *testing.T) {
	for _, tt := range []struct{ name, sql, want string }{
		{"none was dispatched meanwhile", paused("work", "3", "null", "at(7.15)"), ""},
		{"it ended by itself", paused("work", "3", "at(7.15)", "null"), ""},
		{"another handler", paused("other", "0", "null", "null"), ""},
		{"one after the other", paused("work", "3", "null", "at(4)") + paused("work", "4", "null", "at(5)"), ""},
		{
			"a handler", paused("work", "5", "at(100000)", "at(8)"),
			`S15: step 16386, dispatch 2: dispatched while handler "work" was paused, since 2026-03-01T00:00:05Z`,
		},
		{
			"a namespace", paused("", "5", "at(8)", "null"),
			`S15: step 16386, dispatch 2: dispatched while its namespace was paused, since 2026-03-01T00:00:05Z`,
		},
		{
			"two at a time", paused("work", "3", "null", "at(5)") + paused("work", "4", "null", "at(6)"),
			`S14: handler "work" was paused at 2026-03-01T00:00:04Z while an earlier pause of it had not ended`,
		},
		{
			"a paused step that is shown as ready", paused("work", "100000", "null", "null") +
				`create or replace function pauses_over(of_namespace int, of_handler text, at timestamptz) returns setof pause language sql as 'select * from pause where false'`,
			`S13: step 98307: is pending and ready: false; it shows as pending and ready: true`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := clean(t)
			if _, err := db.Pool.Exec(t.Context(), tt.sql); err != nil {
				t.Fatal(err)
			}
			got := check(t, db).Violations
			if tt.want == "" && len(got) > 0 || tt.want != "" && !slices.ContainsFunc(got, func(v history.Violation) bool { return strings.Contains(v.String(), tt.want) }) {
				t.Errorf("found %v, want %q", got, tt.want)
			}
		})
	}
}
