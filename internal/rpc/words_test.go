package rpc_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/rpc"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func list(words map[string]bool) []string { return slices.Sorted(maps.Keys(words)) }

// Each enum of the contract has exactly the words of the database, neither side one more.
func TestEnumsMirrorTheWordsOfTheDatabase(t *testing.T) {
	db := pgtest.New(t)
	labels := func(enum string) map[string]bool {
		rows, err := db.Pool.Query(t.Context(), "select enumlabel from pg_enum where enumtypid = to_regtype($1)", enum)
		if err != nil {
			t.Fatal(err)
		}
		words := map[string]bool{}
		for rows.Next() {
			var word string
			if err := rows.Scan(&word); err != nil {
				t.Fatal(err)
			}
			words[word] = true
		}
		return words
	}
	// choices are the words of each CASE in any function, in its own words.
	rows, err := db.Pool.Query(t.Context(), `
		select prosrc || coalesce(pg_get_function_sqlbody(oid), '')
		from pg_proc
		where pronamespace = current_schema()::regnamespace and not exists (select from pg_depend where objid = pg_proc.oid and deptype = 'e')`)
	if err != nil {
		t.Fatal(err)
	}
	sources, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var choices []map[string]bool
	words := regexp.MustCompile(`(?i)\b(?:then|else)\s+'([a-z_]+)'`)
	for _, source := range sources {
		for _, block := range regexp.MustCompile(`(?is)\bcase\b.*?\bend\b`).FindAllString(source, -1) {
			set := map[string]bool{}
			for _, m := range words.FindAllStringSubmatch(block, -1) {
				set[m[1]] = true
			}
			if len(set) > 1 {
				choices = append(choices, set)
			}
		}
	}
	same := func(enum string, words map[string]bool) {
		t.Helper()
		if want := rpc.Words()[enum]; !maps.Equal(want, words) {
			t.Errorf("%s has %v, the database %v", enum, list(want), list(words))
		}
	}
	same("ParkedReason", labels("park_reason"))
	same("DispatchOutcome", labels("dispatch_outcome"))
	same("DelaySource", labels("delay_source"))
	same("CircuitState", labels("circuit_state"))
	same("CircuitCause", labels("circuit_cause"))
	same("Blame", labels("failure_blame"))

	// The CASEs that give the other words, each known by words that only it has.
	found := map[string]bool{}
	for _, set := range choices {
		enum := ""
		switch {
		case set["in_progress"] && set["complete"]:
			enum = "TaskState"
		case set["in_progress"]:
			enum = "StepState"
			maps.Copy(set, labels("step_end_state")) // an ended step's word is the stored one
		case set["processing"]:
			enum = "ExecutionStatus"
		case set["finalize_task"]:
			enum = "RecommendedAction"
		case set["healthy"]:
			enum = "HealthStatus"
		default:
			continue
		}
		found[enum] = true
		same(enum, set)
	}
	if len(found) != 5 {
		t.Errorf("only %v found in the functions", list(found))
	}
	for word := range labels("task_end_state") {
		if !rpc.Words()["TaskState"][word] {
			t.Errorf("TaskState lacks %s", word)
		}
	}
}

// The words that live in Go alone.
func TestEnumsMirrorTheWordsOfTheEngine(t *testing.T) {
	for enum, kind := range map[string]string{
		"RevokeReason": "RevokeReason", "StepState": "StepState", "TaskState": "State", "DispatchOutcome": "Outcome", "DelaySource": "DelaySource",
		"CircuitState": "CircuitState", "CircuitCause": "CircuitCause", "Blame": "Blame",
	} {
		words := constants(t, kind)
		if want := rpc.Words()[enum]; !maps.Equal(want, words) {
			t.Errorf("%s has %v, package task %v", enum, list(want), list(words))
		}
	}
}

// constants are the string constants of a type of package task.
func constants(t *testing.T, kind string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../task/*.go")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if name, ok := spec.Type.(*ast.Ident); ok && name.Name == kind && len(spec.Values) == 1 {
				if word, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value); err == nil {
					words[word] = true
				}
			}
			return true
		})
	}
	return words
}
