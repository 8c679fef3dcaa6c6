package history

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// checkPauses decides S15. A dispatch in the very instant in which a pause began or ended may have come before or after.
func (c *checker) checkPauses(ctx context.Context, tx pgx.Tx) error {
	var (
		taskID           *int64
		stepNo, dispatch *int
		handler          string
		since            time.Time
	)
	rows, _ := tx.Query(ctx, sqlText("pauses"))
	_, err := pgx.ForEachRow(rows, []any{&taskID, &stepNo, &dispatch, &handler, &since}, func() error {
		what := fmt.Sprintf("handler %q", handler)
		if handler == "" {
			what = "its namespace"
		}
		if taskID == nil {
			c.r.add(Violation{Invariant: "S14", Message: fmt.Sprintf("%s was paused at %s while an earlier pause of it had not ended", what, show(&since))})
			return nil
		}
		c.r.add(Violation{"S15", *taskID, *taskID + int64(*stepNo), *dispatch, fmt.Sprintf("dispatched while %s was paused, since %s", what, show(&since))})
		return nil
	})
	return err
}
