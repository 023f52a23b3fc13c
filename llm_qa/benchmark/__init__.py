"""How fast a recipe trains and answers, beside what others would do with the same documents."""
