-- A code and its system go together: asked for with both it is no rarer than with one.
-- Guessed apart they made an exact count of many take ten times as long.
drop statistics resource_tokens_together;
create statistics resource_tokens_together (mcv, ndistinct)
    on resource_type, parameter, value, system from resource_tokens;
alter statistics resource_tokens_together set statistics 1000;
