package contract_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// words are the values of an enum as SQL says them: without prefix, in small letters, the unspecified one left out.
func words(enum protoreflect.EnumType, prefix string) []string {
	var out []string
	values := enum.Descriptor().Values()
	for i := range values.Len() {
		if v := values.Get(i); v.Number() != 0 {
			out = append(out, strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix)))
		}
	}
	slices.Sort(out)
	return out
}

func TestEnumsSayTheWordsOfTheirSQLTypes(t *testing.T) {
	db := pgtest.New(t).Conn(t)
	for _, c := range []struct {
		sqlType string
		words   []string
	}{
		{"dispatch_outcome", words(pb.DispatchOutcome(0).Type(), "DISPATCH_OUTCOME_")},
		{"delay_source", words(pb.DelaySource(0).Type(), "DELAY_SOURCE_")},
		{"park_reason", words(pb.ParkedReason(0).Type(), "PARKED_REASON_")},
		{"circuit_state", words(pb.CircuitState(0).Type(), "CIRCUIT_STATE_")},
		{"circuit_cause", words(pb.CircuitCause(0).Type(), "CIRCUIT_CAUSE_")},
		{"failure_blame", words(pb.Blame(0).Type(), "BLAME_")},
	} {
		t.Run(c.sqlType, func(t *testing.T) {
			var labels []string
			err := db.QueryRow(t.Context(), `select array_agg(enumlabel::text order by enumlabel collate "C")
				from pg_enum where enumtypid = $1::regtype`, c.sqlType).Scan(&labels)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(labels, c.words) {
				t.Errorf("SQL says %v, the contract %v", labels, c.words)
			}
		})
	}
}

// The columns below are text; the comment on each lists its words.
func TestEnumsSayTheWordsOfTheirColumns(t *testing.T) {
	db := pgtest.New(t).Conn(t)
	word := regexp.MustCompile(`[a-z]+(_[a-z]+)*`)
	for _, c := range []struct {
		row, column string
		words       []string
	}{
		{"step_readiness", "current_state", words(pb.StepState(0).Type(), "STEP_STATE_")},
		{"step_readiness", "waiting_for", words(pb.WaitingFor(0).Type(), "WAITING_FOR_")},
		{"circuit_health", "state", words(pb.CircuitState(0).Type(), "CIRCUIT_STATE_")},
		{"circuit_events_v", "cause", words(pb.CircuitCause(0).Type(), "CIRCUIT_CAUSE_")},
		{"task_execution", "status", words(pb.TaskState(0).Type(), "TASK_STATE_")},
		{"task_execution", "execution_status", words(pb.ExecutionStatus(0).Type(), "EXECUTION_STATUS_")},
		{"task_execution", "recommended_action", words(pb.RecommendedAction(0).Type(), "RECOMMENDED_ACTION_")},
		{"task_execution", "health_status", words(pb.HealthStatus(0).Type(), "HEALTH_STATUS_")},
	} {
		t.Run(c.row+"."+c.column, func(t *testing.T) {
			var comment string
			err := db.QueryRow(t.Context(), `select col_description(attrelid, attnum) from pg_attribute
				where attrelid = $1::regclass and attname = $2`, c.row, c.column).Scan(&comment)
			if err != nil {
				t.Fatal(err)
			}
			said := word.FindAllString(comment, -1)
			for _, w := range c.words {
				if !slices.Contains(said, w) {
					t.Errorf("the contract says %s, the column's comment does not: %s", w, comment)
				}
			}
		})
	}
}
